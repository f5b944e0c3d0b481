package blobtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// Capabilities says what a store is held to.
type Capabilities struct {
	// PartSize is the size in bytes from which on a body is stored in parts; sizes around it are tried. 0 means that there are no parts.
	PartSize int64
	// PageSize, if not 0, is the number of entries of one page of a listing; a few more objects are made and listed.
	PageSize int
	// RepeatedVersion is true if storing the same bytes again may give the same version (an ETag is a hash of the content).
	RepeatedVersion bool
	// NoLargeConditions is true if the store ignores the condition of a put that was larger than one part and lost a race.
	NoLargeConditions bool
}

// Run holds a store to the contract of blob.Store. open returns an empty store; it is called once a test.
func Run(t *testing.T, open func(t *testing.T) blob.Store, caps Capabilities) {
	tests := []struct {
		name string
		run  func(*suite)
	}{
		{"round trip", (*suite).roundTrip},
		{"key spelling", (*suite).keySpelling},
		{"invalid arguments", (*suite).invalidArguments},
		{"not found", (*suite).notFound},
		{"replace", (*suite).replace},
		{"create if absent", (*suite).createIfAbsent},
		{"create if absent, race", (*suite).createRace},
		{"replace if unchanged", (*suite).replaceIfUnchanged},
		{"replace if unchanged, race", (*suite).replaceRace},
		{"large conditional put", (*suite).largeConditional},
		{"body fails", (*suite).bodyFails},
		{"body is canceled", (*suite).bodyCanceled},
		{"invisible until complete", (*suite).invisible},
		{"ranges", (*suite).ranges},
		{"replaced while read", (*suite).replacedWhileRead},
		{"list", (*suite).list},
		{"list pages", (*suite).listPages},
		{"purge", (*suite).purge},
		{"canceled context", (*suite).canceled},
		{"probe", (*suite).probe},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.run(&suite{T: t, store: open(t), caps: caps})
		})
	}
}

func (s *suite) roundTrip() {
	sizes := []int64{0, 1, 1000, 32 << 10, 100_000}
	if p := s.caps.PartSize; p > 0 {
		sizes = append(sizes, p-1, p, p+1, 3*p+12345)
	}
	for i, size := range sizes {
		key := fmt.Sprintf("dir/object-%d", size)
		data := pattern(size, uint64(i))
		put := s.mustPut(key, data, blob.PutOptions{})
		s.wantContent(key, data)
		stat, err := s.store.Stat(s.Context(), key)
		if err != nil || stat.Size != size || stat.Version != put.Version || stat.Key != key {
			s.Fatalf("Stat(%q) = %+v, %v; Put returned %+v", key, stat, err, put)
		}
		if d := time.Since(stat.Modified); d < -time.Minute || d > 10*time.Minute {
			s.Errorf("Stat(%q).Modified is %s ago", key, d)
		}
	}
	for e, err := range s.store.List(s.Context(), "dir/", blob.ListOptions{}) {
		if err != nil {
			s.Fatal(err)
		}
		if want := fmt.Sprintf("dir/object-%d", e.Size); e.Key != want {
			s.Errorf("List gives %s the size %d", e.Key, e.Size)
		}
		if stat, err := s.store.Stat(s.Context(), e.Key); err != nil || e.Version != "" && e.Version != stat.Version {
			s.Errorf("List gives %s the version %q, Stat %q, %v", e.Key, e.Version, stat.Version, err)
		}
	}
}

func (s *suite) keySpelling() {
	keys := []string{
		"2026-01-30T01:02:03Z-000009/etcd.backup.gz", "with space", "plus+plus", "100%41", "umlaut-ä/日本", "q?x=1&y#z",
		"quote'\"<>", "~tilde", "a=b,c;d@e!$(f)*",
		"deep/er/and/deep/er/still", strings.Repeat("x", 200), ".hidden", "_etcd_backup.meta",
	}
	for _, key := range keys {
		s.mustPut(key, []byte(key), blob.PutOptions{})
	}
	for _, key := range keys {
		s.wantContent(key, []byte(key))
	}
	slices.Sort(keys)
	if got := s.keys("", blob.ListOptions{}); !slices.Equal(got, keys) {
		s.Errorf("List = %q, want %q", got, keys)
	}
	if n, err := s.store.Purge(s.Context(), "", func(string) bool { return true }); n != len(keys) || err != nil {
		s.Errorf("Purge = %d, %v; want %d", n, err, len(keys))
	}
	if got := s.keys("", blob.ListOptions{}); len(got) != 0 {
		s.Errorf("after Purge List = %q", got)
	}
}

func (s *suite) invalidArguments() {
	for _, key := range []string{"", "/a", "a/", "a//b", "../a", "a/../b", ".", "a/./b", "a\x00b", "a\nb", `a\b`,
		"\xff", strings.Repeat("x/", 1000) + "x"} {
		_, err := s.put(key, nil, blob.PutOptions{})
		s.wantError(fmt.Sprintf("Put %q", key), err, blob.ErrInvalid)
		_, _, err = s.get(key, blob.Range{})
		s.wantError(fmt.Sprintf("Get %q", key), err, blob.ErrInvalid)
		_, err = s.store.Stat(s.Context(), key)
		s.wantError(fmt.Sprintf("Stat %q", key), err, blob.ErrInvalid)
	}
	_, err := s.put("a", nil, blob.PutOptions{IfAbsent: true, IfVersion: "1"})
	s.wantError("Put with two conditions", err, blob.ErrInvalid)
	_, err = s.store.Purge(s.Context(), "../", func(string) bool { return true })
	s.wantError("Purge ../", err, blob.ErrInvalid)
	for _, err = range s.store.List(s.Context(), "a", blob.ListOptions{Delimiter: "-"}) {
	}
	s.wantError("List with another delimiter", err, blob.ErrInvalid)
}

func (s *suite) notFound() {
	s.mustPut("there/is", []byte("x"), blob.PutOptions{})
	for _, key := range []string{"absent", "there/isn't", "there", "there/is/not"} {
		_, _, err := s.get(key, blob.Range{})
		s.wantError("Get "+key, err, blob.ErrNotFound)
		_, err = s.store.Stat(s.Context(), key)
		s.wantError("Stat "+key, err, blob.ErrNotFound)
	}
	_, err := s.put("absent", []byte("x"), blob.PutOptions{IfVersion: "0123456789abcdef0123456789abcdef"})
	s.wantError("Put with a version where nothing is", err, blob.ErrPreconditionFailed)
	s.wantAbsent("absent")
	if got := s.keys("nothing/", blob.ListOptions{}); len(got) != 0 {
		s.Errorf("List = %q", got)
	}
	if n, err := s.store.Purge(s.Context(), "nothing/", func(string) bool { return true }); n != 0 || err != nil {
		s.Errorf("Purge of nothing = %d, %v", n, err)
	}
}

func (s *suite) replace() {
	first := s.mustPut("k", []byte("first"), blob.PutOptions{})
	second := s.mustPut("k", []byte("second"), blob.PutOptions{})
	if first.Version == second.Version {
		s.Errorf("the version stayed %q", first.Version)
	}
	s.wantContent("k", []byte("second"))
	third := s.mustPut("k", []byte("second"), blob.PutOptions{})
	if !s.caps.RepeatedVersion && third.Version == second.Version {
		s.Errorf("the version stayed %q", second.Version)
	}
	if got := s.keys("", blob.ListOptions{}); !slices.Equal(got, []string{"k"}) {
		s.Errorf("List = %q", got)
	}
}

func (s *suite) createIfAbsent() {
	s.mustPut("dir/k", []byte("first"), blob.PutOptions{IfAbsent: true})
	_, err := s.put("dir/k", []byte("second"), blob.PutOptions{IfAbsent: true})
	s.wantError("second create", err, blob.ErrPreconditionFailed)
	s.wantContent("dir/k", []byte("first"))
	if _, err := s.store.Purge(s.Context(), "dir/", func(string) bool { return true }); err != nil {
		s.Fatal(err)
	}
	s.mustPut("dir/k", []byte("third"), blob.PutOptions{IfAbsent: true})
	s.wantContent("dir/k", []byte("third"))
}

func (s *suite) replaceIfUnchanged() {
	first := s.mustPut("k", []byte("first"), blob.PutOptions{})
	second := s.mustPut("k", []byte("second"), blob.PutOptions{IfVersion: first.Version})
	_, err := s.put("k", []byte("third"), blob.PutOptions{IfVersion: first.Version})
	s.wantError("put with a stale version", err, blob.ErrPreconditionFailed)
	s.wantContent("k", []byte("second"))
	stat, err := s.store.Stat(s.Context(), "k")
	if err != nil || stat.Version != second.Version {
		s.Fatalf("Stat = %+v, %v; want version %q", stat, err, second.Version)
	}
	s.mustPut("k", []byte("fourth"), blob.PutOptions{IfVersion: stat.Version})
	s.wantContent("k", []byte("fourth"))
}

func (s *suite) list() {
	all := []string{"a+", "a-b", "a.b", "a/b", "a/c/d", "a/c/e", "a0", "b/x", "c", "control/cmd-1/_command.json",
		"control/cmd-2/_command.json", "control/spec"}
	for _, i := range rand.Perm(len(all)) {
		s.mustPut(all[i], []byte(all[i]), blob.PutOptions{})
	}
	for _, tt := range []struct {
		prefix, delimiter, after string
		want                     []string
	}{
		{want: all},
		{prefix: "a", want: all[:7]},
		{prefix: "a/", want: []string{"a/b", "a/c/d", "a/c/e"}},
		{prefix: "a/c", want: []string{"a/c/d", "a/c/e"}},
		{prefix: "a/c/d", want: []string{"a/c/d"}},
		{prefix: "a/c/d/", want: []string{}},
		{prefix: "x", want: []string{}},
		{delimiter: "/", want: []string{"a+", "a-b", "a.b", "a/", "a0", "b/", "c", "control/"}},
		{prefix: "a", delimiter: "/", want: []string{"a+", "a-b", "a.b", "a/", "a0"}},
		{prefix: "a/", delimiter: "/", want: []string{"a/b", "a/c/"}},
		{prefix: "control/", delimiter: "/", want: []string{"control/cmd-1/", "control/cmd-2/", "control/spec"}},
		{prefix: "control/cmd", delimiter: "/", want: []string{"control/cmd-1/", "control/cmd-2/"}},
		{prefix: "control/cmd-", want: []string{"control/cmd-1/_command.json", "control/cmd-2/_command.json"}},
		{after: "a.b", want: all[3:]},
		{after: "a/c/d", want: all[5:]},
		{after: "a/c", want: all[4:]},
		{after: "zzz", want: []string{}},
		{prefix: "control/", after: "control/cmd-1/_command.json", want: all[10:]},
		{prefix: "control/", delimiter: "/", after: "control/cmd-1/", want: []string{"control/cmd-2/", "control/spec"}},
		{delimiter: "/", after: "a.b", want: []string{"a/", "a0", "b/", "c", "control/"}},
	} {
		if got := s.keys(tt.prefix, blob.ListOptions{Delimiter: tt.delimiter, After: tt.after}); !slices.Equal(got, tt.want) {
			s.Errorf("List(%q, delimiter %q, after %q)\n = %q\nwant %q", tt.prefix, tt.delimiter, tt.after, got, tt.want)
		}
	}
	for range s.store.List(s.Context(), "", blob.ListOptions{}) { //nolint:errcheck // The errors are in the sequence; here only its end matters.
		break // Ending early must not hang or panic.
	}
}

func (s *suite) listPages() {
	if s.caps.PageSize == 0 {
		s.Skip("this store has no pages")
	}
	want := make([]string, 0, s.caps.PageSize+20)
	for i := range cap(want) {
		want = append(want, fmt.Sprintf("many/%05d/meta", i))
	}
	var wg sync.WaitGroup
	work := make(chan string)
	for range 8 {
		wg.Go(func() {
			for key := range work {
				if _, err := s.put(key, []byte("x"), blob.PutOptions{}); err != nil {
					s.Errorf("Put(%q): %v", key, err)
				}
			}
		})
	}
	for _, key := range want {
		work <- key
	}
	close(work)
	wg.Wait()
	if got := s.keys("many/", blob.ListOptions{}); !slices.Equal(got, want) {
		s.Errorf("List shows %d objects, want %d", len(got), len(want))
	}
	if got := s.keys("many/", blob.ListOptions{Delimiter: "/"}); len(got) != len(want) || !slices.IsSorted(got) {
		s.Errorf("List with a delimiter shows %d prefixes, want %d in order", len(got), len(want))
	}
	n, err := s.store.Purge(s.Context(), "many/", func(key string) bool { return key != want[7] })
	if n != len(want)-1 || err != nil {
		s.Errorf("Purge = %d, %v; want %d", n, err, len(want)-1)
	}
	if got := s.keys("", blob.ListOptions{}); !slices.Equal(got, want[7:8]) {
		s.Errorf("after Purge %d objects are left: %.200q", len(got), got)
	}
}

func (s *suite) purge() {
	for _, key := range []string{"b1/meta", "b1/data", "b2/meta", "b2/data", "b10/data", "other"} {
		s.mustPut(key, []byte("old"), blob.PutOptions{})
		s.mustPut(key, []byte(key), blob.PutOptions{})
	}
	var asked []string
	n, err := s.store.Purge(s.Context(), "b1", func(key string) bool {
		asked = append(asked, key)
		return strings.HasPrefix(key, "b1/")
	})
	if n != 2 || err != nil {
		s.Fatalf("Purge = %d, %v; want 2", n, err)
	}
	slices.Sort(asked)
	if want := []string{"b1/data", "b1/meta", "b10/data"}; !slices.Equal(asked, want) {
		s.Errorf("match was asked for %q, want %q", asked, want)
	}
	s.wantAbsent("b1/meta")
	s.wantAbsent("b1/data")
	if got, want := s.keys("", blob.ListOptions{}), []string{"b10/data", "b2/data", "b2/meta", "other"}; !slices.Equal(got, want) {
		s.Errorf("List = %q, want %q", got, want)
	}
	if n, err := s.store.Purge(s.Context(), "b1/", func(string) bool { return true }); n != 0 || err != nil {
		s.Errorf("second Purge = %d, %v", n, err)
	}
	s.mustPut("b1/meta", []byte("again"), blob.PutOptions{IfAbsent: true})
	s.wantContent("b1/meta", []byte("again"))
	s.hide("b1/meta")
}

// hide: what is hidden is gone for readers, a Purge doesn't bring it back, and the key can be used again.
func (s *suite) hide(key string) {
	for range 2 { // hiding what isn't there is a success
		if _, err := s.store.Put(s.Context(), key, strings.NewReader("not stored"), blob.PutOptions{Hide: true}); err != nil {
			s.Fatalf("hide: %v", err)
		}
		s.wantAbsent(key)
	}
	if _, err := s.store.Purge(s.Context(), key, func(string) bool { return true }); err != nil {
		s.Errorf("purge what is hidden: %v", err)
	}
	s.wantAbsent(key)
	s.mustPut(key, []byte("new"), blob.PutOptions{IfAbsent: true})
	_, err := s.store.Put(s.Context(), key, strings.NewReader(""), blob.PutOptions{Hide: true, IfAbsent: true})
	s.wantError("hide with a condition", err, blob.ErrInvalid)
	s.wantContent(key, []byte("new"))
}

func (s *suite) canceled() {
	s.mustPut("k", []byte("x"), blob.PutOptions{})
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	check := func(what string, err error) {
		s.Helper()
		s.wantError(what, err, context.Canceled)
		if errors.Is(err, blob.ErrNotFound) || errors.Is(err, blob.ErrTransient) || errors.Is(err, blob.ErrDenied) {
			s.Errorf("%s: a canceled context is blamed on the store: %v", what, err)
		}
	}
	_, err := s.store.Put(ctx, "k2", strings.NewReader("x"), blob.PutOptions{})
	check("Put", err)
	_, err = s.store.Stat(ctx, "k")
	check("Stat", err)
	if rc, _, err := s.store.Get(ctx, "k", blob.Range{}); err == nil {
		_, err = io.ReadAll(rc)
		rc.Close()
		check("Get", err)
	} else {
		check("Get", err)
	}
	for _, err = range s.store.List(ctx, "", blob.ListOptions{}) {
	}
	check("List", err)
	_, err = s.store.Purge(ctx, "", func(string) bool { return true })
	check("Purge", err)
	s.wantContent("k", []byte("x"))
	s.wantAbsent("k2")
}

func (s *suite) probe() {
	r, err := blob.Probe(s.Context(), s.store, "node-a")
	if err != nil {
		s.Fatalf("Probe: %v", err)
	}
	if !r.Write || !r.Read || !r.List || !r.Delete || !r.Fenced() {
		s.Errorf("Probe = %+v", r)
	}
	if got := s.keys("", blob.ListOptions{}); len(got) != 0 {
		s.Errorf("Probe left %q", got)
	}
}
