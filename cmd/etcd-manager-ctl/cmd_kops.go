package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/kops"
)

// kopsRequest is what the commands about a kOps cluster file are asked for.
type kopsRequest struct {
	file string
	kops.Options
}

func kopsCommand(a *app) *cobra.Command {
	var r kopsRequest
	cmd := &cobra.Command{
		Use: "kops", Short: "Create the volumes, the spec and the static pods of a kOps cluster file",
		Long: `Compare the etcd parts of a kOps cluster file with what exists, show the differences, and apply them:
the volumes of the members, the cluster spec in the backup store, the key pairs of the CAs, and the static pods. "kops
get --name=NAME -o yaml" writes this file.

The file names the stores, so --backup-store isn't needed.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return ui.Usagef("kops needs plan, apply or render")
			}
			return ui.Usagef("unknown command %q for kops: use plan, apply or render", args[0])
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	f := cmd.PersistentFlags()
	f.StringVarP(&r.file, "filename", "f", "", "cluster `file`, - for standard input")
	f.StringVar(&r.Image, "image", "", "manager's `image` for etcd clusters that name none (etcdClusters[].manager.image)")
	f.StringVar(&r.EtcdImage, "etcd-image", "", "etcd's `image`, with %s for the version (default registry.k8s.io/etcd:v%s)")
	cmd.AddCommand(kopsPlanCommand(a, &r), kopsApplyCommand(a, &r), kopsRenderCommand(a, &r))
	return cmd
}

func kopsPlanCommand(a *app, r *kopsRequest) *cobra.Command {
	return &cobra.Command{
		Use: "plan", Short: "Show the differences between the file and what exists; change nothing", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.format("json"); err != nil {
				return err
			}
			p, _, err := readKopsPlan(cmd.Context(), a, r)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.printJSON(p)
			}
			if err := printPlan(a, p); err != nil || p.Empty() || len(p.Refused()) > 0 {
				return err
			}
			return a.printf("Nothing was changed. Apply it: etcd-manager-ctl kops apply -f %s --yes\n", r.file)
		},
	}
}

func kopsApplyCommand(a *app, r *kopsRequest) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "apply", Short: "Apply the differences, after showing them and asking", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.format(); err != nil {
				return err
			}
			p, w, err := readKopsPlan(cmd.Context(), a, r)
			if err != nil {
				return err
			}
			if err := printPlan(a, p); err != nil || p.Empty() {
				return err
			}
			if len(p.Refused()) == 0 {
				if err := a.confirm(cmd.Context(), yes, "yes", "apply it"); err != nil {
					return err
				}
			}
			return kops.Apply(cmd.Context(), p, w, func(c kops.Change) {
				a.note("done: %s %s", c.Action, changeName(c))
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

func kopsRenderCommand(a *app, r *kopsRequest) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "render", Short: "Write static pods and systemd units for each instance group", Args: noArgs,
		Long: `Write static pods and systemd units for each instance group: to GROUP/pods and GROUP/systemd below
--out, or to standard output. Only the file is read; nothing else is needed.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.format(); err != nil {
				return err
			}
			f, err := readKopsFile(a, r)
			if err != nil {
				return err
			}
			files, err := kops.Render(f, r.Options)
			if err != nil {
				return &ui.UsageError{Err: err}
			}
			return writeRendered(a, files, out)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "`directory` for the files; default is standard output")
	return cmd
}

func writeRendered(a *app, files []kops.Rendered, dir string) error {
	for _, f := range files {
		if dir == "" {
			if err := a.printf("# %s\n%s---\n", f.Path, f.Data); err != nil {
				return err
			}
			continue
		}
		path := filepath.Join(dir, filepath.FromSlash(f.Path))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		if err := atomicfile.Write(path, f.Data, 0o644); err != nil {
			return err
		}
		if err := a.printf("%s\n", path); err != nil {
			return err
		}
	}
	return nil
}

// readKopsFile reads and checks the cluster file, and passes its warnings on.
func readKopsFile(a *app, r *kopsRequest) (*kops.File, error) {
	var data []byte
	var err error
	switch r.file {
	case "":
		return nil, ui.Usagef("the cluster file is missing: -f cluster.yaml, as kops get --name=NAME -o yaml writes it")
	case "-":
		data, err = io.ReadAll(a.in)
	default:
		data, err = os.ReadFile(r.file)
	}
	if err != nil {
		return nil, ui.Usagef("read the cluster file: %w", err)
	}
	f, err := kops.Parse(data)
	if err != nil {
		return nil, &ui.UsageError{Err: err}
	}
	return f, nil
}

// readKopsPlan compares the file with what exists.
func readKopsPlan(ctx context.Context, a *app, r *kopsRequest) (kops.Plan, kops.World, error) {
	f, err := readKopsFile(a, r)
	if err != nil {
		return kops.Plan{}, kops.World{}, err
	}
	a.store = f.ConfigBase
	volumes, err := a.kopsVolumes(ctx, f)
	if err != nil {
		return kops.Plan{}, kops.World{}, err
	}
	w := kops.World{Volumes: volumes, Open: a.open, Now: a.now}
	limited, cancel := a.limit(ctx)
	defer cancel()
	o, err := kops.Observe(limited, f, w)
	if err != nil {
		return kops.Plan{}, w, err
	}
	p, err := kops.Compare(f, o, r.Options)
	return p, w, err
}

func changeName(c kops.Change) string {
	name := string(c.Kind) + "/" + c.Name
	if c.Volume.ID != "" {
		name += " (" + c.Volume.ID + ")"
	}
	return name
}

// printPlan shows a plan like a preview.
func printPlan(a *app, p kops.Plan) error {
	for _, w := range p.Warnings {
		a.note("warning: %s", w)
	}
	counts := map[kops.Action]int{}
	for _, c := range p.Changes {
		counts[c.Action]++
		if err := a.printf("%-7s %s\n", c.Action, changeName(c)); err != nil {
			return err
		}
		for _, f := range c.Fields {
			if err := a.printf("          %s: %s\n", f.Name, difference(f)); err != nil {
				return err
			}
		}
		if c.Why != "" {
			if err := a.printf("          %s\n", c.Why); err != nil {
				return err
			}
		}
	}
	if p.Empty() {
		return a.printf("There are no differences.\n")
	}
	s := fmt.Sprintf("%d to create, %d to modify", counts[kops.ActionCreate], counts[kops.ActionModify])
	if n := counts[kops.ActionRefuse]; n > 0 {
		s += fmt.Sprintf("; %d are impossible, so nothing is changed", n)
	}
	return a.printf("%s.\n", s)
}

func difference(f kops.Field) string {
	switch {
	case f.From == "":
		return f.To
	case f.To == "":
		return f.From + " -> (none)"
	}
	return strings.Join([]string{f.From, f.To}, " -> ")
}
