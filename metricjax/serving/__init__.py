"""A small web server that answers with the neighbours of a picture.

`batches` brings waiting requests together for the device, `uploads` reads what
strangers send, `gallery` is what is searched and shown, `application` the routes and
their answers, `guard` what holds for every one of them, `server` the socket and the
signals. The page is `reports/search.html`.
"""
