"""Core: what every room stands on, from errors and storage to manifests, configs and the contracts of plug-ins."""
