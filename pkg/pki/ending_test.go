package pki

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// TestEnding moves the clock towards the end of the CAs: 30, 7 and 1 days before it, and after it, more is said.
func TestEnding(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	if err := CreateCAs(dir, now); err != nil {
		t.Fatal(err)
	}
	k, err := NewKeeper(Config{Dir: dir, NodeID: "a", Managers: true, Etcd: true, Policy: DefaultPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	end := k.authority(PeersCA).signer.NotAfter
	const day = 24 * time.Hour
	for _, c := range []struct {
		before time.Duration
		level  time.Duration // -1: nothing is said
		words  string
	}{
		{31 * day, -1, ""},
		{30 * day, 30 * day, "ends in 30 days"},
		{8 * day, 30 * day, "ends in 8 days"},
		{7 * day, 7 * day, "ends in 7 days"},
		{25 * time.Hour, 7 * day, "ends in 1 day,"},
		{day, day, "ends in 1 day,"},
		{5 * time.Hour, day, "ends in 5 hours"},
		{-time.Hour, 0, "has ended"},
	} {
		got := k.Ending(end.Add(-c.before))
		if c.level < 0 {
			if len(got) > 0 {
				t.Errorf("%s before: %+v", c.before, got)
			}
			continue
		}
		if len(got) != 1 || got[0].Level != c.level || !strings.Contains(got[0].Text, c.words) || got[0].Way == "" {
			t.Errorf("%s before: %+v, want level %s and %q", c.before, got, c.level, c.words)
			continue
		}
		for _, ca := range []string{ManagerCA, PeersCA, ClientsCA} {
			if !strings.Contains(got[0].Text, ca+".crt") {
				t.Errorf("%s before: %s isn't named in %q", c.before, ca, got[0].Text)
			}
		}
	}
}

// TestEndingCertificate is about a certificate whose CA has time left but whose renewal fails, and about CAs of a short life.
func TestEndingCertificate(t *testing.T) {
	now := time.Now()
	k := &Keeper{status: map[string]Status{
		"fine":    {Name: "fine", NotAfter: now.Add(time.Hour)},
		"failing": {Name: "failing", NotAfter: now.Add(50 * time.Hour), Err: errors.New("read-only file system")},
	}}
	got := k.Ending(now)
	if len(got) != 1 || !strings.Contains(got[0].Text, "read-only") || strings.Contains(got[0].Text, "fine") {
		t.Errorf("%+v", got)
	}
	if _, ok := level(9*24*time.Hour, 10*24*time.Hour); ok {
		t.Error("a CA of ten days is said to end on its first day")
	}
	if l, ok := level(3*24*time.Hour, 10*24*time.Hour); !ok || l != 7*24*time.Hour {
		t.Errorf("three days before its end: %s %v", l, ok)
	}
}

// TestEndings: all CAs, and of the certificates the one that ends first.
func TestEndings(t *testing.T) {
	dir := t.TempDir()
	if err := CreateCAs(dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	k, err := NewKeeper(Config{Dir: dir, NodeID: "a", Managers: true, Etcd: true, Policy: DefaultPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	first := k.Status()[0].NotAfter
	for _, s := range k.Status() {
		if s.NotAfter.Before(first) {
			first = s.NotAfter
		}
	}
	list := k.Endings()
	if len(list) != 4 || list[0].What != "CA "+ClientsCA || !list[0].At.Equal(k.authority(ClientsCA).signer.NotAfter) {
		t.Fatalf("they are %+v", list)
	}
	if c := list[3]; !c.Renewed || !c.At.Equal(first) || c.Problem != "" {
		t.Errorf("the certificate is %+v, not one that ends at %s", c, first)
	}
	k.status["x"] = Status{Name: "x", NotAfter: first, Err: errors.New("no")}
	if list := k.Endings(); len(list) != 5 || list[3].Problem != "no" || list[3].Renewed {
		t.Errorf("with one that can't be renewed: %+v", list)
	}
}
