"""Engines that run the parts of a job on other machines; see `rcg.core.parts.Job`."""
