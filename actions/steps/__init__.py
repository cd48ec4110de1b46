"""Steps that several actions share."""
