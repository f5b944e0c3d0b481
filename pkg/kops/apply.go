package kops

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// ErrRefused: the plan holds something that can't be done, so nothing was.
var ErrRefused = errors.New("nothing was done")

// Apply does what a plan says, one change after the other, and calls done after each. If it ends
// early, what was done stays, and planning and applying again goes on from there. What was changed
// by somebody else since the plan was made is not overwritten.
func Apply(ctx context.Context, p Plan, w World, done func(Change)) error {
	if refused := p.Refused(); len(refused) > 0 {
		var names []string
		for _, c := range refused {
			names = append(names, string(c.Kind)+"/"+c.Name)
		}
		return fmt.Errorf("%w: %s can't be changed as in the file", ErrRefused, strings.Join(names, ", "))
	}
	for _, c := range p.Changes {
		if c.Action == ActionNote {
			continue
		}
		if err := apply(ctx, &c, w); err != nil {
			if errors.Is(err, blob.ErrPreconditionFailed) {
				err = fmt.Errorf("somebody else changed it in the meantime; check the plan again: %w", err)
			}
			return fmt.Errorf("%s %s/%s: %w", c.Action, c.Kind, c.Name, err)
		}
		done(c)
	}
	return nil
}

func apply(ctx context.Context, c *Change, w World) error {
	if c.Kind == KindVolume {
		return applyVolume(ctx, c, w)
	}
	s, err := w.Open(ctx, c.object.store)
	if err != nil {
		return err
	}
	switch c.Kind {
	case KindSpec:
		cat := catalog.New(s)
		if c.object.version == "" {
			_, err = cat.CreateSpec(ctx, c.spec)
		} else {
			_, err = cat.ReplaceSpec(ctx, c.spec, c.object.version)
		}
		return err
	case KindKeypair:
		return applyKeypair(ctx, c, s, w)
	}
	return put(ctx, s, c.object)
}

// put writes an object if nobody has changed it. The answer may be lost, and an attempt after that is refused for what this one has
// stored: so what stands there is read, and these very bytes are a success.
func put(ctx context.Context, s blob.Store, o object) error {
	_, err := s.Put(ctx, o.key, bytes.NewReader(o.data), blob.PutOptions{IfAbsent: o.version == "", IfVersion: o.version})
	if err == nil {
		return nil
	}
	if have, _, rerr := blob.ReadAll(ctx, s, o.key, maxObject); rerr == nil && bytes.Equal(have, o.data) {
		return nil
	}
	return err
}

// applyKeypair writes the private half first: the other one can be made from it at any time.
func applyKeypair(ctx context.Context, c *Change, s blob.Store, w World) error {
	public := c.object.data
	if c.Action == ActionCreate {
		k, err := newKeyset(c.Name, w.Now())
		if err != nil {
			return err
		}
		data, err := k.encode()
		if err != nil {
			return err
		}
		if err := put(ctx, s, object{key: keysetPath(c.Name, true), data: data}); err != nil {
			return err
		}
		if public, err = k.public().encode(); err != nil {
			return err
		}
	}
	return put(ctx, s, object{key: keysetPath(c.Name, false), data: public})
}

func applyVolume(ctx context.Context, c *Change, w World) error {
	if c.Action == ActionCreate {
		id, err := w.Volumes.Create(ctx, c.Volume, creationToken(c.Volume, w.Now()))
		c.Volume.ID = id
		return err
	}
	isTag := func(f Field) bool { return strings.HasPrefix(f.Name, "Tag ") }
	if slices.ContainsFunc(c.Fields, isTag) {
		if err := w.Volumes.Tag(ctx, c.Volume.ID, c.Volume.Tags); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(c.Fields, func(f Field) bool { return !isTag(f) }) {
		return w.Volumes.Modify(ctx, c.Volume)
	}
	return nil
}

// creationToken names the wish for a member's volume, so that two who apply at once, or one whose
// answer got lost, make one volume. It changes with the day: the provider remembers tokens, also
// those of volumes that were deleted since.
func creationToken(v Volume, now time.Time) string {
	h := sha256.New()
	fmt.Fprintln(h, now.UTC().Format(time.DateOnly), v.Tags[tagName], v.Zone, v.Type, v.SizeGiB, v.IOPS, v.Throughput, v.Encrypted, v.Key)
	return fmt.Sprintf("etcd-%x", h.Sum(nil)[:16])
}
