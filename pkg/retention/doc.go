// Package retention says which backups and which changes between them stay, and why the others go.
//
// The package is pure: it reads no clock, disk or network. The lists and the policy come in, a decision about each item
// comes out; who deletes, and what else must stay (queued commands, operations, pins), is pkg/prune's matter.
package retention
