"""Detection over HTTP on LitServe, and a page that shows it; never imports torch.

Requests are untrusted: they hold the bytes of a picture and a few short fields, are bounded in size, and no
path or address in them is ever opened.
"""
