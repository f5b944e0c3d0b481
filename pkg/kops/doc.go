// Package kops reads what a kOps cluster file says about etcd, and makes it so: the volumes of the
// members, the cluster spec in the backup store, the key pairs of the certificate authorities, and
// the static pods or systemd units that run the managers.
//
// Parsing, comparing and rendering are functions of their arguments. What exists is looked at once
// ([Observe]), what differs is a list that can be shown ([Compare]), and the same list is what is
// done ([Apply]). Nothing is ever deleted, and nothing is done if anything in the list can't be.
package kops
