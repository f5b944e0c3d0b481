// Package sim runs whole clusters of managers in one process, on simulated machines: the code of pkg/manager, pkg/election, pkg/plan,
// pkg/plan/safety and pkg/catalog is the real one; network, clock, disks, store, etcd and the agent that carries out what a leader asks
// of its node are simulated. Everything that goes wrong, goes wrong by the seed. See README.md.
package sim
