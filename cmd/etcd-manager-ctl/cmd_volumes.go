package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
	"github.com/etcd-manager/etcd-manager/pkg/volume/aws"
)

// volumeFlags say whose volumes are meant, in the words of the manager's own flags.
type volumeFlags struct {
	cfg        aws.Config
	encryption string
}

func volumesCommand(a *app) *cobra.Command {
	f := &volumeFlags{}
	c := &cobra.Command{
		Use: "volumes", Short: "Show the members' volumes on AWS, and encrypt them",
		Long: `Show the members' EBS volumes, and replace them by encrypted ones while the cluster runs.

Give the same --cluster-name, --volume-tag and --volume-name-tag as the managers have. For AWS the SDK's usual
variables and files apply (AWS_REGION, AWS_PROFILE, …), with the permissions in docs/aws.md.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return ui.Usagef("volumes has no command %q%s", args[0], didYouMean(args[0], cmd))
			}
			return nil
		},
		RunE: func(*cobra.Command, []string) error {
			return ui.Usagef("a command is missing: volumes check, volumes encrypt or volumes confirm")
		},
	}
	p := c.PersistentFlags()
	p.StringVar(&f.cfg.ClusterName, "cluster-name", "", "the managers' --cluster-name")
	p.StringArrayVar(&f.cfg.Tags, "volume-tag", nil, "the managers' --volume-tag `KEY[=VALUE]`; may be repeated")
	p.StringVar(&f.cfg.NameTag, "volume-name-tag", "", "the managers' --volume-name-tag")
	c.AddCommand(volumesCheckCommand(a, f), volumesEncryptCommand(a, f), volumesConfirmCommand(a, f))
	return c
}

// openVolumes opens EC2.
func (f *volumeFlags) open(ctx context.Context) (*aws.Client, volume.Encryption, error) {
	e, err := volume.ParseEncryption(f.encryption)
	if err != nil {
		return nil, e, &ui.UsageError{Err: err}
	}
	if err := f.cfg.Check(); err != nil {
		return nil, e, &ui.UsageError{Err: err}
	}
	c, err := aws.Open(ctx, f.cfg)
	return c, e, err
}

func volumesCheckCommand(a *app, f *volumeFlags) *cobra.Command {
	c := &cobra.Command{
		Use: "check", Short: "Show every member's volume, and whether it is encrypted", Args: noArgs,
		Long: `Show each member's volume: size, type, encryption, key and state. Members without a volume are shown
too, if the tags of others name them, and so are replaced volumes that are kept.

With --require-encrypted-volume[=KEY-ARN] the exit code is 1 if a member's volume isn't encrypted as required.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return runVolumesCheck(cmd.Context(), a, f) },
	}
	requireFlag(c, &f.encryption)
	return c
}

func requireFlag(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "require-encrypted-volume", "", "the requirement: encrypted with any key, or with the `KEY-ARN`")
	c.Flags().Lookup("require-encrypted-volume").NoOptDefVal = "true"
}

// volumeOutput is one volume as volumes check shows it.
type volumeOutput struct {
	Member    cluster.NodeID `json:"member"`
	Volume    volume.ID      `json:"volume,omitempty"`
	SizeGiB   int            `json:"sizeGiB,omitempty"`
	Type      string         `json:"type,omitempty"`
	Encrypted bool           `json:"encrypted"`
	Key       string         `json:"key,omitempty"`
	Zone      string         `json:"zone,omitempty"`
	State     string         `json:"state"`
	// Problem says what is not as it is wanted.
	Problem string `json:"problem,omitempty"`
}

func runVolumesCheck(ctx context.Context, a *app, f *volumeFlags) error {
	if err := a.format("json"); err != nil {
		return err
	}
	ctx, cancel := a.limit(ctx)
	defer cancel()
	c, wanted, err := f.open(ctx)
	if err != nil {
		return err
	}
	volumes, err := c.Volumes(ctx, "")
	if err != nil {
		return err
	}
	rows := []volumeOutput{}
	bad := 0
	for _, v := range volumes {
		r := rowOf(v)
		if err := wanted.Check(v); err != nil && v.Tags[aws.TagGivenUp] == "" {
			r.Problem = "not encrypted as required"
			bad++
		}
		rows = append(rows, r)
	}
	for _, id := range missingMembers(f.cfg, volumes) {
		rows = append(rows, volumeOutput{Member: id, State: "no volume", Problem: "no volume has its tag"})
	}
	if f.cfg.NameTag != "" {
		kept, err := c.Kept(ctx)
		if err != nil {
			return err
		}
		for _, v := range kept {
			r := rowOf(v)
			r.Member, r.State = memberOfKept(f.cfg, v), "kept, replaced by "+v.Tags[aws.TagReplacedBy]
			rows = append(rows, r)
		}
	}
	slices.SortStableFunc(rows, func(a, b volumeOutput) int { return strings.Compare(string(a.Member), string(b.Member)) })
	if err := printVolumes(a, rows); err != nil {
		return err
	}
	switch {
	case len(volumes) == 0:
		return &notFoundError{fmt.Sprintf("no volume has the tags %s", strings.Join(f.cfg.Tags, ", "))}
	case bad > 0:
		return &outcomeError{exitFailure, fmt.Sprintf("%s not encrypted as required", ui.Count(bad, "volume"))}
	}
	return nil
}

func rowOf(v *volume.Volume) volumeOutput {
	r := volumeOutput{Member: v.Node, Volume: v.ID, SizeGiB: v.SizeGiB, Type: v.Type, Encrypted: v.Encrypted,
		Key: v.Key, Zone: v.Zone, State: v.State}
	for _, at := range v.Attachments {
		r.State = fmt.Sprintf("%s to %s as %s", at.State, at.Instance, at.Device)
	}
	switch {
	case v.Tags[aws.TagGivenUp] != "":
		r.State += ", given up for " + v.Tags[aws.TagReplacedBy]
	case v.Tags[aws.TagReplacedBy] != "":
		r.State += ", to be replaced by " + v.Tags[aws.TagReplacedBy]
	case v.Tags[aws.TagReplaces] != "":
		r.State += ", replaces " + v.Tags[aws.TagReplaces]
	}
	return r
}

// missingMembers are those that the name tags of others list ("a/a,b,c"), but that have no volume.
func missingMembers(cfg aws.Config, volumes []*volume.Volume) []cluster.NodeID {
	var listed, have []cluster.NodeID
	for _, v := range volumes {
		have = append(have, v.Node)
		_, all, _ := strings.Cut(v.Tags[cfg.NameTag], "/")
		for name := range strings.SplitSeq(all, ",") {
			if name != "" {
				listed = append(listed, cluster.NodeID(cfg.ClusterName+"-"+name))
			}
		}
	}
	slices.Sort(listed)
	return slices.DeleteFunc(slices.Compact(listed), func(id cluster.NodeID) bool { return slices.Contains(have, id) })
}

func memberOfKept(cfg aws.Config, v *volume.Volume) cluster.NodeID {
	_, value, _ := strings.Cut(v.Tags[aws.TagKept], "=")
	name, _, _ := strings.Cut(value, "/")
	return cluster.NodeID(cfg.ClusterName + "-" + name)
}

func printVolumes(a *app, rows []volumeOutput) error {
	if a.output == "json" {
		return a.printJSON(rows)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MEMBER\tVOLUME\tSIZE\tTYPE\tENCRYPTED\tKEY\tSTATE")
	for _, r := range rows {
		size, encrypted := fmt.Sprintf("%d GiB", r.SizeGiB), "no"
		if r.Encrypted {
			encrypted = "yes"
		}
		if r.Volume == "" {
			size, encrypted = "-", "-"
		}
		state := r.State
		if r.Problem != "" {
			state += " (" + r.Problem + ")"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", dash(string(r.Member)), dash(string(r.Volume)), size,
			dash(r.Type), encrypted, dash(r.Key), state)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func volumesConfirmCommand(a *app, f *volumeFlags) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "confirm", Short: "Delete the volumes that were replaced and are kept", Args: noArgs,
		Long: `Delete the volumes that "volumes encrypt" has replaced. Until then they are kept unchanged, with their old data.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return runVolumesConfirm(cmd.Context(), a, f, yes) },
	}
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return c
}

func runVolumesConfirm(ctx context.Context, a *app, f *volumeFlags, yes bool) error {
	c, _, err := f.open(ctx)
	if err != nil {
		return err
	}
	kept, err := c.Kept(ctx)
	if err != nil {
		return err
	}
	if len(kept) == 0 {
		a.note("no replaced volume is kept")
		return nil
	}
	for _, v := range kept {
		a.note("%s, %d GiB, of %s, given up %s", v.ID, v.SizeGiB, memberOfKept(f.cfg, v), v.Tags[aws.TagGivenUp])
	}
	if err := a.confirm(ctx, yes, "delete", "delete these volumes"); err != nil {
		return err
	}
	var errs []error
	for _, v := range kept {
		if err := c.Delete(ctx, v.ID); err != nil {
			errs = append(errs, err)
			continue
		}
		a.note("deleted %s", v.ID)
	}
	return errors.Join(errs...)
}
