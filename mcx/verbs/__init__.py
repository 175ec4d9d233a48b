"""What users call: one file a group of verbs, and the checks that they share."""
