"""The demo: everything the bot rescues, on one machine."""
