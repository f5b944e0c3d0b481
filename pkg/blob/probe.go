package blob

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// ProbePrefix is where Probe keeps its objects while it runs.
const ProbePrefix = "control/probe/"

// ProbeResult is what Probe found out. A field is only true if it was seen to work.
type ProbeResult struct {
	// Write, Read, List and Delete say that the operation works.
	Write, Read, List, Delete bool
	// ConditionalCreate says that a second create of one key was refused and the first object stayed.
	ConditionalCreate bool
	// ConditionalReplace says that a put with the right version was taken and one with a stale version refused.
	ConditionalReplace bool
	// Missing lists the permissions that were found missing, as the store calls them.
	Missing []string
	// Unchecked lists what could not be tried because something before it failed.
	Unchecked []string
}

// Fenced reports whether the store's conditional puts can fence leaders.
func (r ProbeResult) Fenced() bool { return r.ConditionalCreate && r.ConditionalReplace }

// String is one line for the operator.
func (r ProbeResult) String() string {
	var b strings.Builder
	for _, c := range []struct {
		name string
		ok   bool
	}{
		{"write", r.Write}, {"read", r.Read}, {"list", r.List}, {"delete", r.Delete},
		{"conditional create", r.ConditionalCreate}, {"conditional replace", r.ConditionalReplace},
	} {
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		switch {
		case c.ok:
			b.WriteString(c.name + ": works")
		case contains(r.Unchecked, c.name):
			b.WriteString(c.name + ": not tried")
		default:
			b.WriteString(c.name + ": NOT WORKING")
		}
	}
	if len(r.Missing) > 0 {
		b.WriteString("; missing permissions: " + strings.Join(r.Missing, ", "))
	}
	return b.String()
}

// longestName is how long the longest name is that etcd-manager gives to a file: that of a segment of changes.
const longestName = 96

// Probe tries what etcd-manager needs of a store, with a small object of its own below ProbePrefix and owner, which it removes.
// It takes seven operations and does not stop at the first that fails, except when the store can't be reached at all.
//
// The error joins everything that failed; it is nil if writing, reading, listing and deleting work. That conditional puts are not
// honored is no error but a matter of ProbeResult.Fenced. owner is one part of a key, for example the node's id.
func Probe(ctx context.Context, s Store, owner string) (ProbeResult, error) {
	p := prober{ctx: ctx, s: s, prefix: ProbePrefix + owner + "/"}
	// The name is as those of backups and commands are, and as long as a segment's: a file system may refuse a colon, or what is long.
	name := time.Now().UTC().Format(time.RFC3339) + "-" + strings.ToLower(rand.Text())
	p.key = p.prefix + name + strings.Repeat("0", longestName-len(name))
	if err := CheckKey(p.key); err != nil || strings.Contains(owner, "/") {
		return p.r, &Error{Op: "put", Key: p.key, Kind: ErrInvalid,
			Err: errors.Join(err, fmt.Errorf("probe: %q is not one part of a key", owner))}
	}
	if first, ok := p.write(); ok {
		p.conditions(first)
	} else {
		p.r.Unchecked = append(p.r.Unchecked, "conditional create", "conditional replace")
	}
	if p.unreachable() {
		p.r.Unchecked = append(p.r.Unchecked, "read", "list", "delete")
	} else {
		p.read()
		p.list()
		p.delete()
	}
	return p.r, errors.Join(p.errs...)
}

type prober struct {
	ctx         context.Context
	s           Store
	prefix, key string
	content     string // What the object holds, if Write.
	r           ProbeResult
	errs        []error
}

// failed notes an error.
func (p *prober) failed(what string, err error) {
	p.errs = append(p.errs, fmt.Errorf("probe store: %s: %w", what, err))
	for _, action := range missingActions(err) {
		if !contains(p.r.Missing, action) {
			p.r.Missing = append(p.r.Missing, action)
		}
	}
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// missingActions collects the actions of all denials in a tree of errors.
func missingActions(err error) []string {
	var actions []string
	if e, ok := err.(*Error); ok && e.Action != "" {
		actions = append(actions, e.Action)
	}
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		actions = append(actions, missingActions(u.Unwrap())...)
	case interface{ Unwrap() []error }:
		for _, e := range u.Unwrap() {
			actions = append(actions, missingActions(e)...)
		}
	}
	return actions
}

// unreachable reports whether asking on makes no sense: no answer, no time, or no such bucket.
func (p *prober) unreachable() bool {
	for _, err := range p.errs {
		if errors.Is(err, ErrTransient) || errors.Is(err, ErrInvalid) {
			return true
		}
	}
	return p.ctx.Err() != nil
}

func (p *prober) put(content string, opts PutOptions) (Info, error) {
	info, err := p.s.Put(p.ctx, p.key, strings.NewReader(content), opts)
	if err == nil {
		p.content = content
	}
	return info, err
}

// write creates the object, without a condition if the store has no conditions at all.
func (p *prober) write() (Info, bool) {
	info, err := p.put("probe 1", PutOptions{IfAbsent: true})
	if err != nil && !errors.Is(err, ErrDenied) && !errors.Is(err, ErrTransient) && p.ctx.Err() == nil {
		if plain, perr := p.put("probe 1", PutOptions{}); perr == nil {
			p.r.Write = true
			return plain, true
		}
	}
	if err != nil {
		p.failed("write", err)
		return info, false
	}
	p.r.Write = true
	return info, true
}

func (p *prober) conditions(first Info) {
	_, err := p.put("probe 2", PutOptions{IfAbsent: true})
	p.r.ConditionalCreate = errors.Is(err, ErrPreconditionFailed)
	if err == nil {
		// The object was replaced. Its version is not what was first any more; learn it.
		if now, serr := p.s.Stat(p.ctx, p.key); serr == nil {
			first = now
		}
	} else if !p.r.ConditionalCreate {
		p.failed("create if absent", err)
	}
	_, err = p.put("probe 3", PutOptions{IfVersion: first.Version})
	matching := err == nil
	if err != nil && !errors.Is(err, ErrPreconditionFailed) {
		p.failed("replace if unchanged", err)
	}
	stale := first.Version
	if !matching {
		stale = "00000000000000000000000000000000"
	}
	_, err = p.put("probe 4", PutOptions{IfVersion: stale})
	p.r.ConditionalReplace = matching && errors.Is(err, ErrPreconditionFailed)
	if err != nil && !errors.Is(err, ErrPreconditionFailed) {
		p.failed("replace if unchanged", err)
	}
}

// read gets the object, or one that isn't there, which at least shows a missing permission.
func (p *prober) read() {
	data, _, err := p.readContent()
	switch {
	case !p.r.Write && errors.Is(err, ErrNotFound):
		p.r.Read = true
	case err != nil:
		p.failed("read", err)
	case p.r.Write && data != p.content:
		// Writing is what was acknowledged, so a condition that was refused and obeyed all the same is as bad as a wrong byte.
		p.r.ConditionalCreate, p.r.ConditionalReplace = false, false
		p.failed("read", &Error{Op: "get", Key: p.key, Err: fmt.Errorf("the store returned %q, %q was written", data, p.content)})
	default:
		p.r.Read = true
	}
}

func (p *prober) readContent() (string, Info, error) {
	rc, info, err := p.s.Get(p.ctx, p.key, Range{})
	if err != nil {
		return "", info, err
	}
	defer rc.Close()
	data, err := io.ReadAll(io.LimitReader(rc, 1024))
	return string(data), info, err
}

func (p *prober) list() {
	found := false
	for e, err := range p.s.List(p.ctx, p.prefix, ListOptions{}) {
		if err != nil {
			p.failed("list", err)
			return
		}
		found = found || e.Key == p.key
	}
	if p.r.Write && !found {
		p.failed("list", &Error{Op: "list", Key: p.prefix, Err: errors.New("an object that was just written is not listed")})
		return
	}
	p.r.List = true
}

// delete removes the object, and what earlier probes of this owner left when they were killed. A write that failed may have
// left something too, for example if it could not be verified. A store that has it all under lock is a good one.
func (p *prober) delete() {
	n, err := Remove(p.ctx, p.s, p.prefix, func(string) bool { return true })
	switch {
	case err != nil:
		p.failed("delete", err)
	case n == 0 && !p.r.Write:
		p.r.Unchecked = append(p.r.Unchecked, "delete")
	default:
		p.r.Delete = true
	}
}
