"""The bot's own memory: tables and plain async functions over them."""
