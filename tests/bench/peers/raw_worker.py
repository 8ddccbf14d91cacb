"""The raw pair's worker."""

from raw import REQUEST, command, connect, popped

connection = connect()
wait = command(b"BLPOP", REQUEST, b"0")
connection.sendall(wait)
while True:
    reply = popped(connection)
    connection.sendall(command(b"LPUSH", reply, b"3") + wait)
