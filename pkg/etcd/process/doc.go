// Package process runs one etcd, of any version from 3.4 to 3.7: it finds an executable that can be trusted, makes its command line and
// environment, starts it, finds it again after the manager was restarted, and says how it ended.
//
// It must never start a second etcd on a data dir, never run a file that others than root can have written, and never signal a process that it
// hasn't recognized. An etcd outlives the manager that has started it.
package process
