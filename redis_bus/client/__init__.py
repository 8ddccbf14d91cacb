"""The caller's side of both faces: drives steps over a transport."""
