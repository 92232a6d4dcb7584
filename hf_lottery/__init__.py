"""hf_lottery: find, verify and publish lottery tickets with the Hugging Face stack."""

__version__ = "0.1.0"
