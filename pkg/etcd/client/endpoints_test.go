package client

import (
	"slices"
	"testing"
)

// TestMemberEndpoints: a name that members share is not resolved; the machine's own addresses stand in its place.
func TestMemberEndpoints(t *testing.T) {
	for name, c := range map[string]struct{ urls, addresses, want []string }{
		"a shared name":        {[]string{"https://main.etcd.internal:4001"}, []string{"10.0.0.2"}, []string{"https://10.0.0.2:4001"}},
		"IPv6":                 {[]string{"https://b.internal:4001"}, []string{"fd00::2"}, []string{"https://[fd00::2]:4001"}},
		"an address":           {[]string{"https://192.0.2.7:4001"}, []string{"10.0.0.2"}, []string{"https://192.0.2.7:4001"}},
		"two names, two hosts": {[]string{"http://x:1", "http://y:1"}, []string{"10.0.0.2", "10.0.0.3"}, []string{"http://10.0.0.2:1", "http://10.0.0.3:1"}},
		"nothing is known":     {[]string{"https://main.etcd.internal:4001"}, nil, []string{"https://main.etcd.internal:4001"}},
	} {
		if got := MemberEndpoints(c.urls, c.addresses); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v; want %v", name, got, c.want)
		}
	}
}
