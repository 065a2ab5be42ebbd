"""One convention for every command: `command file.yaml … key.sub=value …`."""

from bertchen.config.load import Config, load_config
from bertchen.config.units import parse_seconds

__all__ = ["Config", "load_config", "parse_seconds"]
