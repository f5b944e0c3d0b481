package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
	"github.com/etcd-manager/etcd-manager/pkg/volume/aws"
)

func volumesEncryptCommand(a *app, f *volumeFlags) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "encrypt", Short: "Replace the members' volumes by encrypted ones, one after the other, while the cluster runs", Args: noArgs,
		Long: `Replace every volume that isn't encrypted as required by an encrypted one of the same size and type, one
member after the other, while the cluster serves its clients:

  1. An empty encrypted volume is created in the member's zone, with the same tags.
  2. The member's node sees it, waits until every other member is healthy, stops its etcd gracefully, releases the
     old volume and attaches the new one.
  3. The leader takes a backup, and adds the member again as a learner, which gets its data from the others and is promoted.
  4. The old volume is kept, under another tag, until "volumes confirm" deletes it.

You can interrupt it at any point and start it again: it continues. It needs at least three members, and managers that
run with --volume-provider=aws. --require-encrypted-volume=KEY-ARN encrypts with that key; without it, the account's
default key for EBS is used.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return runVolumesEncrypt(cmd.Context(), a, f, yes) },
	}
	requireFlag(c, &f.encryption)
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return c
}

// encryptRun is one run of volumes encrypt. What it does next follows from the volumes' tags and
// the nodes' records alone, so that any run goes on where another one ended.
type encryptRun struct {
	a     *app
	ec2   *aws.Client
	store *operator.Client
	want  volume.Encryption
	said  map[string]bool
}

func runVolumesEncrypt(ctx context.Context, a *app, f *volumeFlags, yes bool) error {
	if err := a.format(); err != nil {
		return err
	}
	if f.cfg.NameTag == "" {
		return ui.Usagef("--volume-name-tag is missing: the tag that makes a volume a member's")
	}
	if f.encryption == "" || f.encryption == "false" {
		f.encryption = "true"
	}
	store, err := a.client(ctx)
	if err != nil {
		return err
	}
	c, want, err := f.open(ctx)
	if err != nil {
		return err
	}
	r := &encryptRun{a: a, ec2: c, store: store, want: want, said: map[string]bool{}}
	left, err := r.left(ctx)
	if err != nil || len(left) == 0 {
		if err == nil {
			a.note("every member's volume is encrypted as required")
		}
		return err
	}
	for _, v := range left {
		a.note("%s: %s, %d GiB, %s, is to be replaced", v.Node, v.ID, v.SizeGiB, v.Type)
	}
	if err := a.confirm(ctx, yes, "encrypt", "replace these volumes, one after the other"); err != nil {
		return err
	}
	return r.run(ctx)
}

// run goes on until nothing is left.
func (r *encryptRun) run(ctx context.Context) error {
	for {
		done, err := r.step(ctx)
		switch {
		case ctx.Err() != nil:
			return r.interrupted()
		case err != nil:
			return err
		case done:
			r.a.note("every member's volume is encrypted as required. The old volumes are kept; when you are sure, delete them with \"volumes confirm\"")
			return nil
		}
		if !r.a.pause(ctx) {
			return r.interrupted()
		}
	}
}

func (r *encryptRun) interrupted() error {
	return &outcomeError{exitUnfollowed, "interrupted: the replacement that was begun continues; run the same command again for the rest"}
}

// left are the members' volumes that aren't as wanted, or whose replacement isn't finished.
func (r *encryptRun) left(ctx context.Context) ([]*volume.Volume, error) {
	volumes, err := r.ec2.Volumes(ctx, "")
	if err != nil {
		return nil, err
	}
	if len(volumes) == 0 {
		return nil, &notFoundError{"no volume has these tags"}
	}
	return slices.DeleteFunc(volumes, func(v *volume.Volume) bool {
		return v.Node == "" || v.Tags[aws.TagReplaces] != "" || v.Tags[aws.TagReplacedBy] == "" && r.want.Check(v) == nil
	}), nil
}

// step does the next thing, or finds out what is waited for.
func (r *encryptRun) step(ctx context.Context) (done bool, err error) {
	left, err := r.left(ctx)
	if err != nil || len(left) == 0 {
		return err == nil, err
	}
	records, err := r.store.VolumeRecords(ctx)
	if err != nil {
		return false, err
	}
	// One that was begun comes first: two members are never without their data at once.
	slices.SortStableFunc(left, func(a, b *volume.Volume) int { return begun(b) - begun(a) })
	old := left[0]
	id := volume.ID(old.Tags[aws.TagReplacedBy])
	if id == "" {
		return false, r.begin(ctx, old, records)
	}
	next, err := r.ec2.Volume(ctx, id)
	if err != nil && !aws.IsMissing(err) {
		return false, err
	}
	if err != nil {
		return false, fmt.Errorf("volume %s is to be replaced by %s, which can't be found: %w; if it was deleted, remove the tag %s of %s and start again", old.ID, id, err, aws.TagReplacedBy, old.ID)
	}
	record := records[old.Node]
	switch {
	case record.Volume == string(id) && record.Serving:
		if err := r.ec2.Keep(ctx, old, next); err != nil {
			return false, err
		}
		r.say("%s: serves from %s (encrypted, %s); the old volume %s is kept", old.Node, next.ID, next.Key, old.ID)
	case record.Volume == string(id):
		r.say("%s: has attached %s; the other members fill it", old.Node, next.ID)
	case old.Tags[aws.TagGivenUp] != "":
		r.say("%s: has released %s and attaches %s", old.Node, old.ID, next.ID)
	case record.Waiting != "":
		r.say("%s: not yet: %s", old.Node, record.Waiting)
	default:
		r.say("%s: waiting until its manager sees that %s will replace %s (--discovery-poll-interval)", old.Node, next.ID, old.ID)
	}
	return false, nil
}

func begun(v *volume.Volume) int {
	if v.Tags[aws.TagReplacedBy] != "" {
		return 1
	}
	return 0
}

// begin creates the new volume and tags the old one, once all members serve.
func (r *encryptRun) begin(ctx context.Context, old *volume.Volume, records map[cluster.NodeID]catalog.VolumeRecord) error {
	if err := r.allServe(ctx, records); err != nil {
		r.say("%s: not begun: %v", old.Node, err)
		return nil
	}
	next, err := r.made(ctx, old)
	if err != nil {
		return err
	}
	if err := r.want.Check(next); err != nil {
		return err
	}
	if next.State != "available" {
		r.say("%s: waiting until %s is created (it is %s)", old.Node, next.ID, next.State)
		return nil
	}
	if err := r.ec2.Tag(ctx, old.ID, map[string]string{aws.TagReplacedBy: string(next.ID)}); err != nil {
		return err
	}
	r.say("%s: created %s, encrypted with %s, which will replace %s", old.Node, next.ID, next.Key, old.ID)
	return nil
}

// made is the volume that an earlier run has made for this one, or else a new one.
func (r *encryptRun) made(ctx context.Context, old *volume.Volume) (*volume.Volume, error) {
	volumes, err := r.ec2.Volumes(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, v := range volumes {
		if v.Tags[aws.TagReplaces] != string(old.ID) {
			continue
		}
		if r.want.Check(v) == nil {
			return v, nil
		}
		r.say("%s: %s was created for it before, with the key %s, and isn't used; delete it", old.Node, v.ID, cmp.Or(v.Key, "of nobody"))
	}
	r.say("%s: an encrypted volume like %s is created", old.Node, old.ID)
	return r.ec2.Create(ctx, old, r.want)
}

// allServe looks at what the nodes say: every volume's node has to serve from it.
func (r *encryptRun) allServe(ctx context.Context, records map[cluster.NodeID]catalog.VolumeRecord) error {
	volumes, err := r.ec2.Volumes(ctx, "")
	if err != nil {
		return err
	}
	members := 0
	var errs []error
	for _, v := range volumes {
		if v.Node == "" || v.Tags[aws.TagReplaces] != "" {
			continue
		}
		members++
		switch record, ok := records[v.Node]; {
		case !ok:
			errs = append(errs, fmt.Errorf("%s has not reported its volume (does its manager run, in this version, with --volume-provider=aws?)", v.Node))
		case !record.Serving || record.Volume != string(v.ID):
			errs = append(errs, fmt.Errorf("%s doesn't serve from %s", v.Node, v.ID))
		}
	}
	if members < 3 {
		errs = append(errs, fmt.Errorf("there are %d members with a volume; at least 3 are needed, because one has no data while it is rebuilt", members))
	}
	return errors.Join(errs...)
}

// say prints a line once.
func (r *encryptRun) say(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if !r.said[line] {
		r.said[line] = true
		r.a.note("%s %s", ui.Clock(r.a.now()), line)
	}
}
