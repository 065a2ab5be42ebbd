"""A small grammar of German: lexicon, inflection and word order, for the demo's sample text."""
