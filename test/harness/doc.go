// Package harness runs real managers as processes on loopback and looks at them from outside, as an operator would.
//
// A Cluster has a directory, CAs, a backup store and a number of nodes. Every node has an address of its own in
// 127.0.0.0/8 and the same ports, as masters have, so that clusters never get in each other's way. Whatever is started, the etcds
// that outlive their managers included, ends with the test, even if the test binary is killed. The package is for tests only, and it
// must never reach behind the managers' backs: it knows what an operator can know.
package harness
