"""The only home of vendor SDKs and subprocesses."""
