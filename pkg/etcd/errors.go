package etcd

import "errors"

// ErrConfig is wrapped by every refusal of a [Config].
var ErrConfig = errors.New("bad etcd configuration")

// ErrVersion is wrapped by every refusal that is about an etcd version.
var ErrVersion = errors.New("etcd version not suitable")

// ErrDataDirInUse means that an etcd runs on the data dir already.
var ErrDataDirInUse = errors.New("data dir is in use")

// ErrBadDatabase means that a file is not a sound etcd database.
var ErrBadDatabase = errors.New("bad database")

// ErrBadSnapshot means that a snapshot is short, empty, or not what its own hash says.
var ErrBadSnapshot = errors.New("bad snapshot")

// ErrBadLog means that a write-ahead log is damaged in a place other than its end, where a crash may tear it.
var ErrBadLog = errors.New("bad write-ahead log")

// ErrGap means that a change to be replayed doesn't follow on what is there.
var ErrGap = errors.New("changes are missing")
