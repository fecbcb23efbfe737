"""Encoders: question text or picture in, one vector out. One file per encoder, one Protocol, one builder."""
