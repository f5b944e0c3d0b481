package main

import (
	"errors"
	"slices"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// FuzzShell: whatever a command line says, only a manager is started.
func FuzzShell(f *testing.F) {
	f.Add("mkfifo /tmp/pipe; (tee -a /var/log/etcd.log < /tmp/pipe & ) ; exec /etcd-manager --backup-store=s3://b/x --name='a b' > /tmp/pipe 2>&1")
	f.Add("exec /bin/sh; \"$HOME\" `id` \x1b")
	f.Fuzz(func(t *testing.T, line string) {
		testutil.Untrusted(t, len(line), testutil.Usual, func() error {
			o, err := parseShell([]string{"-c", line})
			manager := len(o.command) > 0 && slices.Contains(managers(), o.command[0])
			if err == nil && !manager || err != nil && !errors.Is(err, errRefused) {
				t.Errorf("%q starts %q: %v", line, o.command, err)
			}
			return err
		})
	})
}
