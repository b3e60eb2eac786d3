"""How the embedded models were made: their training set, trainings and measurements."""
