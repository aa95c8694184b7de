"""The methods that ToV is measured against, a file a method, as functions of arrays and of a model under its adapter."""
