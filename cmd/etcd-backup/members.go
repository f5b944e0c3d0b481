package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"k8s.io/klog/v2"

	etcdclient "github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

// dial prepares a client for each client URL.
func (o options) dial(conf *tls.Config) ([]*etcdclient.Client, error) {
	var list []*etcdclient.Client
	for _, url := range o.clientURLs {
		c, err := etcdclient.DialAs([]string{url}, conf, o.etcdUser())
		if err != nil {
			return nil, errors.Join(err, closeAll(list))
		}
		list = append(list, c)
	}
	return list, nil
}

func closeAll(list []*etcdclient.Client) error {
	var errs []error
	for _, c := range list {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// etcdUser is who this program is to etcd; nobody if the certificate's name says it.
func (o options) etcdUser() etcdclient.User {
	return etcdclient.User{Name: o.user, Password: func() (string, error) { return readPassword(o.password) }}
}

// readPassword is the first line of a file: editors end it with a newline.
func readPassword(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("--client-password-file: %w", err)
	}
	line, rest, _ := strings.Cut(string(data), "\n")
	line = strings.TrimSuffix(line, "\r")
	if line == "" || strings.TrimSpace(rest) != "" {
		return "", fmt.Errorf("--client-password-file: %s must hold one line, the password", path)
	}
	return line, nil
}

// choose asks the members at all client URLs, and takes the etcd leader; if it isn't among them, the one that was taken before, else
// the first that answers.
func (s *sidecar) choose(ctx context.Context) (etcdclient.Status, error) {
	if len(s.clients) == 1 {
		return s.status(ctx)
	}
	answers, errs := make([]etcdclient.Status, len(s.clients)), make([]error, len(s.clients))
	var wg sync.WaitGroup
	for i, c := range s.clients {
		wg.Go(func() { answers[i], errs[i] = statusOf(ctx, c) })
	}
	wg.Wait()
	best, first := -1, -1
	for i, st := range answers {
		if errs[i] != nil {
			continue
		}
		if first < 0 {
			first = i
		}
		if other := answers[first]; st.ClusterID != other.ClusterID {
			return st, fmt.Errorf("--client-url names two etcd clusters: %x at %s, %x at %s; give the URLs of one",
				other.ClusterID, s.o.clientURLs[first], st.ClusterID, s.o.clientURLs[i])
		}
		if st.MemberID == st.Leader || best < 0 || s.clients[i] == s.client && answers[best].MemberID != answers[best].Leader {
			best = i
		}
	}
	if best < 0 {
		return etcdclient.Status{}, fmt.Errorf("no member answers: %w; %w", errs[0], errors.Join(errs[1:]...))
	}
	if c := s.clients[best]; c != s.client {
		klog.Infof("using %s, member %s, from now on", s.o.clientURLs[best], answers[best].MemberID)
		s.client = c
	}
	return answers[best], nil
}
