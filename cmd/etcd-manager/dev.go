package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// devDefaults fills in everything that --dev needs and that wasn't given.
func (o *options) devDefaults(given map[string]bool) error {
	root, err := filepath.Abs("etcd-manager-dev")
	if err != nil {
		return fmt.Errorf("--dev: %w", err)
	}
	set := func(name string, to *string, value string) {
		if !given[name] {
			*to = value
		}
	}
	set("cluster-name", &o.clusterName, "dev")
	set("backup-store", &o.backupStore, filepath.Join(root, "backups"))
	set("data-dir", &o.dataDir, filepath.Join(root, "data"))
	set("pki-dir", &o.pkiDir, filepath.Join(root, "pki"))
	set("etcd-address", &o.etcdAddress, "127.0.0.1")
	return nil
}

// prepareDev writes a spec of one member if there is none.
func (d *daemon) prepareDev(ctx context.Context) error {
	_, err := d.catalog.CreateSpec(ctx, cluster.Spec{MemberCount: 1})
	if err != nil && !errors.Is(err, catalog.ErrConflict) {
		return fmt.Errorf("--dev: %w", err)
	}
	return nil
}

// announceDev says how to reach the cluster, once it serves.
func (d *daemon) announceDev(ctx context.Context) error {
	for ctx.Err() == nil {
		changed, _ := d.agent.Changed()
		s := d.agent.Status(ctx)
		if s.Etcd.Votes() && !s.Etcd.Quarantined {
			pki := ""
			if !d.o.etcdInsecure {
				dir := filepath.Join(d.o.dataDir, "pki", string(s.State.Token), "clients")
				pki = fmt.Sprintf(" --cacert=%s/ca.crt --cert=%s/server.crt --key=%s/server.key", dir, dir, dir)
			}
			fmt.Printf("\netcd %s serves at %s\n\n  look:     etcdctl --endpoints=%s%s endpoint status -w table\n  backups:  etcd-manager-ctl --backup-store=%s list-backups\n\nStop it with Ctrl-C. The next start continues with the same data.\n\n",
				s.Etcd.Version, d.self.ClientURLs[0], d.self.ClientURLs[0], pki, d.o.backupStore)
			<-ctx.Done()
			return nil
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(time.Second):
		}
	}
	return nil
}
