"""What every room uses: errors, the frame of a script, files, addresses and sockets, streams of text."""
