// Package node is the local agent of a master: it keeps one etcd process running exactly as the state file says, and
// carries out the leader's actions, one fenced and idempotent step at a time.
//
// It owns the data dir: state file, journal, votes, etcd's data dirs, certificates, trash can. It decides nothing about the
// cluster; that is the leader's duty. What it does by itself is to restart an etcd that ended, to reattach to one that outlived an
// earlier manager, and to empty the trash can once a newer backup is in the store. It never stops an etcd because the store or
// the other managers are away.
package node
