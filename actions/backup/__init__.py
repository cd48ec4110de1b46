"""Backup engines behind one port."""
