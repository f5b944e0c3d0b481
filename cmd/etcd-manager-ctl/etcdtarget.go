package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/kube"
)

// etcdTarget says how to reach an etcd.
type etcdTarget struct {
	endpoints     []string
	ca, cert, key string
}

func (e *etcdTarget) addFlags(f *pflag.FlagSet) {
	f.StringSliceVar(&e.endpoints, "endpoints", nil,
		"`URLs` of etcd, comma separated (default: https://127.0.0.1:4001 with kOps, :2379 with kubeadm)")
	f.StringVar(&e.ca, "cacert", "", "`file` with the CA of etcd's server certificates (default: where kOps or kubeadm put it)")
	f.StringVar(&e.cert, "cert", "", "`file` with a client certificate (default: the API server's)")
	f.StringVar(&e.key, "key", "", "`file` with its key")
}

// installation is where an installer puts what an API server needs to reach etcd.
type installation struct{ by, endpoint, ca, cert, key string }

// installations lists them, newest first.
func installations() []installation {
	var out []installation
	for _, root := range []string{"/", "/rootfs"} { // the second within a manager's pod
		for _, dir := range []string{"srv/kubernetes/kube-apiserver", "etc/kubernetes/pki/kube-apiserver"} {
			d := filepath.Join(root, dir)
			out = append(out, installation{"kOps", "https://127.0.0.1:4001", d + "/etcd-ca.crt", d + "/etcd-client.crt",
				d + "/etcd-client.key"})
		}
		d := filepath.Join(root, "etc/kubernetes/pki")
		out = append(out, installation{"kubeadm", "https://127.0.0.1:2379", d + "/etcd/ca.crt",
			d + "/apiserver-etcd-client.crt", d + "/apiserver-etcd-client.key"})
	}
	return out
}

// complete fills in what the command line leaves open from the first installation that is there.
func (e *etcdTarget) complete(candidates []installation) error {
	if len(e.endpoints) > 0 && (strings.HasPrefix(e.endpoints[0], "http://") || e.ca != "" && e.cert != "" && e.key != "") {
		return nil
	}
	for _, c := range candidates {
		if _, err := os.Stat(c.ca); err != nil {
			continue
		}
		if len(e.endpoints) == 0 {
			e.endpoints = []string{c.endpoint}
		}
		for _, f := range []struct {
			path *string
			def  string
		}{{&e.ca, c.ca}, {&e.cert, c.cert}, {&e.key, c.key}} {
			if *f.path == "" {
				*f.path = f.def
			}
		}
		return nil
	}
	var looked []string
	for _, c := range candidates {
		looked = append(looked, c.ca)
	}
	return ui.Usagef("etcd's address isn't known: there are no files of kOps or kubeadm here (%s). Run this on a master, or give --endpoints, --cacert, --cert and --key",
		strings.Join(looked, ", "))
}

func (e *etcdTarget) tls() (*tls.Config, error) {
	if strings.HasPrefix(e.endpoints[0], "http://") {
		return nil, nil
	}
	pem, err := os.ReadFile(e.ca)
	if err != nil {
		return nil, fmt.Errorf("read the CA of etcd (--cacert): %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the CA of etcd (--cacert): %s holds no certificate in PEM", e.ca)
	}
	pair, err := tls.LoadX509KeyPair(e.cert, e.key)
	if err != nil {
		return nil, fmt.Errorf("read the client certificate (--cert, --key): %w", err)
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

// withEtcd runs f with a client of the etcd that the flags name.
func (a *app) withEtcd(ctx context.Context, e *etcdTarget, f func(context.Context, *clientv3.Client) error) error {
	if err := e.complete(installations()); err != nil {
		return err
	}
	conf, err := e.tls()
	if err != nil {
		return err
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: e.endpoints, TLS: conf, Logger: zap.NewNop(),
		DialTimeout: 5 * time.Second, Context: ctx})
	if err != nil {
		return &ui.UsageError{Err: fmt.Errorf("connect to etcd: %w", err)}
	}
	defer c.Close()
	return f(ctx, c)
}

// etcdError adds to what etcd didn't do where to look.
func etcdError(err error) error {
	var bad *kube.EtcdError
	if !errors.As(err, &bad) {
		return err
	}
	return &outcomeError{exitStore, fmt.Sprintf("%v: check --endpoints and the certificates, and whether etcd has a quorum", err)}
}
