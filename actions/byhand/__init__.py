"""What people use on the day the bot is away. It lies beside the backups, and knows nothing of the bot."""
