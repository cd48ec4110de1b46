#!/usr/bin/env bash
# The monthly backup test of the plan (section 7.1): restores a server from its backups alone into a scratch
# instance, or loads a dump into one, looks through it, records RTO and RPO, removes it. Waits for the end; exit code 0
# when the test passed.
#
#   scripts/test_restore.sh --latest [SERVER|DATABASE]   the newest moment there is; of a database that has dumps alone
#                                                        the newest dump
#   scripts/test_restore.sh --random [SERVER|DATABASE]   any moment of the recovery window
#   scripts/test_restore.sh --dump [DATABASE]            the newest dump, also where there are base backups
#
# DRBOT_PERSON is your short name in the roster; DRBOT is the program where it is not on the PATH.
set -euo pipefail

moment=latest
words=()
dump=()
for word in "$@"; do
    case "$word" in
        --latest) moment=latest ;;
        --random) moment=random ;;
        --dump) dump=(--dump newest) ;;
        -*) printf 'usage: %s [--latest|--random|--dump] [SERVER|DATABASE]\n' "$0" >&2; exit 2 ;;
        *) words+=("$word") ;;
    esac
done

exec "${DRBOT:-drbot}" backup prove ${words[@]+"${words[@]}"} --moment "$moment" ${dump[@]+"${dump[@]}"} \
    --reason "restore test by script"
