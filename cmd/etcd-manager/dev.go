package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
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
			look, err := d.o.devLook(d.self.ClientURLs[0])
			if err != nil {
				return err
			}
			fmt.Printf("\netcd %s serves at %s\n\n  look:     %s\n  backups:  etcd-manager-ctl --backup-store=%s list-backups\n\n"+
				"Stop it with Ctrl-C. The next start continues with the same data.\n\n", s.Etcd.Version, d.self.ClientURLs[0], look, d.o.backupStore)
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

// devLook is a command that looks at etcd: that of this program, as the machine may have no other. Its certificate is one of its own, in a
// place that stays when a restore makes a new cluster.
func (o *options) devLook(endpoint string) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("--dev: find own executable: %w", err)
	}
	command := exe + " etcdctl --endpoints=" + endpoint
	if !o.etcdInsecure {
		r := pki.ClientRequest{Name: "operator", Dir: filepath.Join(o.pkiDir, "client"), Duration: devClient, Renew: true}
		files, err := r.Issue(o.pkiDir, time.Now())
		if err != nil {
			return "", fmt.Errorf("--dev: %w", err)
		}
		command += fmt.Sprintf(" --cacert=%s --cert=%s --key=%s", files.CA, files.Cert, files.Key)
	}
	return command + " endpoint status -w table", nil
}

// devClient is for how long the certificate of that command is good; each start makes it anew.
const devClient = 365 * 24 * time.Hour
