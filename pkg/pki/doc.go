// Package pki reads the certificate authorities, issues the certificates of managers and etcd, and renews
// them while everything runs.
//
// Three authorities exist (docs/format.md): one for the managers among themselves, one for etcd peers, one
// for etcd and its clients. Their keys lie on every master; nothing else is ever signed by hand. A
// [Keeper] holds what one process needs: TLS configs that pick up new certificates and CA bundles without
// a restart, and the certificate files that etcd reads again at each handshake.
//
// The package never overwrites a CA, never lets a certificate outlive the CA that signed it, and never
// replaces a certificate together with its key: the key file of an etcd stays the same for the life of the
// directory, so that a handshake that reads the two files one after the other always finds a pair.
package pki
