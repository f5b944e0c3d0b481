package main

import (
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

func FuzzStaticConfig(f *testing.F) {
	f.Add(`{"etcdVersion":"3.6.16","nodes":[{"id":"x","ip":["10.0.0.1"]}]}`)
	f.Add(`{"nodes":[{"id":"` + strings.Repeat(`\u001b`, 5000) + `"}]}`)
	f.Add(`{"` + strings.Repeat(`\u001b`, 5000) + `":1}`)
	f.Add(`{"etcdVersion":"` + strings.Repeat(`\u001b`, 5000) + `","nodes":[{"id":"x","ip":["10.0.0.1"]}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		testutil.Untrusted(t, len(text), testutil.Usual, func() error {
			o := &options{staticConfig: text, address: "10.0.0.1"}
			err := o.parseStatic()
			if err == nil && text != "" && o.static == nil {
				t.Errorf("%q is nothing", text)
			}
			return err
		})
	})
}
