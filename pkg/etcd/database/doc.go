// Package database reads etcd's databases, and snapshots, without an etcd: it checks them to the last byte, lists what they hold, plans what
// staging changes in them, and replays changes on them. It has a reader of its own for bbolt's files, which may be damaged in any way.
//
// It must never trust what it reads, never map a file into memory, and never write to a database that somebody else may be using. What reads a
// file of unknown origin runs in a child process, so that no file whatever can harm the caller.
package database
