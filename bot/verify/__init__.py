"""Checks the record without the bot: an export or its database, against checkpoints at witnesses and a public key.

Nothing here is shared with what writes the record: the format of checkpoints, the tree and the SQL are written a second
time, so that one mistake cannot hide in both. It needs neither Slack nor a running bot.
"""
