#!/usr/bin/env bash
# The monthly backup test of the plan (section 7.1): restores a server from its backups alone into a scratch
# instance, looks through it, records RTO and RPO, removes it. Waits for the end; exit code 0 when the test passed.
#
#   scripts/test_restore.sh --latest [SERVER|DATABASE]   the newest moment there is
#   scripts/test_restore.sh --random [SERVER|DATABASE]   any moment of the recovery window
#
# DRBOT_PERSON is your short name in the roster; DRBOT is the program where it is not on the PATH.
set -euo pipefail

moment=latest
words=()
for word in "$@"; do
    case "$word" in
        --latest) moment=latest ;;
        --random) moment=random ;;
        -*) printf 'usage: %s [--latest|--random] [SERVER|DATABASE]\n' "$0" >&2; exit 2 ;;
        *) words+=("$word") ;;
    esac
done

exec "${DRBOT:-drbot}" backup prove ${words[@]+"${words[@]}"} --moment "$moment" --reason "restore test by script"
