// Package putback writes keys back into a running etcd, by a plan that was stored before, in guarded transactions. It also makes the plan
// that takes such a work back.
//
// It never writes a key that isn't in the plan, never writes over what somebody has changed since the plan was made, and never does a
// step twice: where it is stands in etcd itself, in a key that each transaction compares and moves on. What a transaction writes
// over is in the store before. It decides nothing about when it may run.
package putback
