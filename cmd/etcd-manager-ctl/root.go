package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/buildinfo"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/pkg/kops"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
	"github.com/etcd-manager/etcd-manager/pkg/spelling"
)

// deps are what the tool needs of the world.
type deps struct {
	args        []string
	in          io.Reader
	out, errOut io.Writer
	// outTerminal and errTerminal tell that somebody looks at a screen there, person that somebody can answer on in.
	outTerminal, errTerminal, person bool
	open                             func(ctx context.Context, url string) (blob.Store, error)
	// openCopy opens another store than the one that is worked on, with variables of its own.
	openCopy func(ctx context.Context, url string) (blob.Store, error)
	// kms is the key service for what is encrypted by keys of one.
	kms   envelope.KMS
	now   func() time.Time
	env   func(string) string
	build buildinfo.Info
	// pause waits between two looks at the store while a command is followed. It returns false if the context ends meanwhile.
	pause func(ctx context.Context) bool
	// kopsVolumes is the block storage of the cluster that a kOps file describes.
	kopsVolumes func(ctx context.Context, f *kops.File) (kops.Volumes, error)
}

// app is one run of the tool.
type app struct {
	deps
	store   string
	output  string
	timeout time.Duration
	// identities open what is encrypted, encryption is for what import-backup writes.
	identities, encryption []string
	// emptyStore allows any command on a store that holds no cluster; creates is true for commands that are meant to begin one.
	emptyStore, creates bool
	// timeoutGiven is true if the command line names one.
	timeoutGiven bool
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, d deps) int {
	a := &app{deps: d}
	root := a.rootCommand()
	args, ignored := arrange(root, d.args)
	for _, name := range ignored {
		a.note("--%s is not used by this command and changes nothing", name)
	}
	root.SetArgs(args)
	root.SetOut(d.out)
	root.SetErr(d.errOut)
	err := a.explain(root.ExecuteContext(ctx))
	if err == nil {
		return exitOK
	}
	if different(err) {
		return exitFailure
	}
	if v := new(verdictError); errors.As(err, &v) {
		return v.code
	}
	code := exitCode(err)
	if a.output == "json" || a.output == "yaml" || a.output == "" && asksForJSON(d.args) {
		printError(a, err, code)
		return code
	}
	fmt.Fprintf(d.errOut, "etcd-manager-ctl: %v\n", err)
	if text := hint(a, err, code); text != "" {
		fmt.Fprintln(d.errOut, text)
	}
	return code
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "etcd-manager-ctl --backup-store=URL [command]",
		Short: "Show, configure and restore an etcd cluster through its backup store",
		Long: `etcd-manager-ctl only needs the backup store: it never needs a network route to the masters.
Without a command it runs "get". Flags may be before the command, with one dash or two.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 the store can't be reached or refuses.
Of status and fleet status: 0 healthy, 1 degraded, 2 needs you, 3 can't tell.
Of a command that is followed: 0 done, 1 failed, 5 rolled back, 6 superseded or withdrawn, 7 not followed to its end.`,
		Version:       a.build.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return ui.Usagef("unknown command %q%s", args[0], didYouMean(args[0], cmd))
		},
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			a.timeoutGiven, a.creates = cmd.Flags().Changed("timeout"), cmd.Annotations[createsStore] != ""
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return runGet(cmd.Context(), a) },
	}
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	f := root.PersistentFlags()
	f.StringVar(&a.store, "backup-store", variable(a, storeVariable),
		"the backup `URL`: s3://bucket/prefix, file:///path, an absolute path, or another URL of docs/stores.md; "+
			"default: the variable "+storeVariable)
	f.StringVarP(&a.output, "output", "o", "",
		"output `format`: json; yaml for status, fleet status, list-backups and events; name and wide for list-backups")
	f.DurationVar(&a.timeout, "timeout", time.Minute,
		"how long to wait for the store; while a command is followed, for how long it may not answer, without a limit unless this flag is given")
	f.StringSliceVar(&a.identities, "identity", nil,
		"`file` with secret keys of age that open encrypted backups, or aws-kms:ARN to use no other key of KMS; may be repeated")
	f.BoolVar(&a.emptyStore, "allow-empty-store", false,
		"continue although nothing is stored at the URL yet; without it only configure-cluster and import-backup do")
	logFlags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(logFlags)
	logFlags.VisitAll(func(lf *flag.Flag) {
		pf := pflag.PFlagFromGoFlag(lf)
		pf.Hidden = true
		f.AddFlag(pf)
	})
	root.AddCommand(getCommand(a), configureCommand(a), listBackupsCommand(a), verifyCommand(a),
		downloadCommand(a), inspectCommand(a), importCommand(a),
		createBackupCommand(a), pinCommand(a), unpinCommand(a), pruneCommand(a), confirmCommand(a),
		useCopyCommand(a), promoteCommand(a), supersedeCommand(a), undoSupersedeCommand(a),
		restoreCommand(a), recoverCommand(a), undoCommand(a),
		followCommand(a), listCommandsCommand(a), describeCommand(a), deleteCommandCommand(a),
		masterleasesCommand(a), kopsCommand(a), volumesCommand(a), pkiCommand(a),
		statusCommand(a), fleetCommand(a), eventsCommand(a), versionCommand(a), historyCommand(a), beforeCommand(a),
		extractCommand(a), openCommand(a),
		diffCommand(a), (&putBacker{a}).command(), (&putBacker{a}).undoCommand())
	return root
}

// didYouMean names the command that is spelled nearly so.
func didYouMean(word string, root *cobra.Command) string {
	var names []string
	for _, c := range root.Commands() {
		names = append(names, c.Name())
	}
	return nearest(word, "", names)
}

// nearest is the end of a message about a name that doesn't exist; empty if no other is spelled nearly so.
func nearest(word, dashes string, names []string) string {
	if near := spelling.Closest(word, names, 1); len(near) > 0 {
		return fmt.Sprintf("; did you mean %q?", dashes+near[0])
	}
	return ""
}

// flagError makes wrong usage out of an error of the flags, and names the flag that may be meant.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) || unknown.GetSpecifiedShortnames() != "" {
		return &ui.UsageError{Err: err}
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	return ui.Usagef("%w%s", err, nearest(unknown.GetSpecifiedName(), "--", names))
}

// storeVariable names the store for command lines that don't.
const storeVariable = "ETCD_MANAGER_BACKUP_STORE"

// variable looks up an environment variable.
func variable(a *app, name string) string {
	if a.env == nil {
		return ""
	}
	return a.env(name)
}

// createsStore is the annotation of a command that may write the first object of a store.
const createsStore = "creates-store"

// client opens the store that the flags name. A command that may begin a store goes on with an empty one, and says so.
func (a *app) client(ctx context.Context) (*operator.Client, error) {
	if a.store == "" {
		return nil, ui.Usagef("--backup-store is missing: for example --backup-store=s3://bucket/prefix, or the variable %s", storeVariable)
	}
	config := operator.Config{
		Store: a.store, Open: a.open, Identities: a.identities, Encryption: a.encryption, KMS: a.kms,
		AllowEmpty: a.emptyStore, Timeout: a.timeout, Now: a.now, Program: a.build.Version,
	}
	c, err := operator.Open(ctx, config)
	var empty *operator.EmptyStoreError
	if a.creates && errors.As(err, &empty) {
		a.note("%v. It becomes the store of a new cluster", empty)
		config.AllowEmpty = true
		c, err = operator.Open(ctx, config)
	}
	return c, err
}

// limit gives a store or an etcd its time for a few small requests.
func (a *app) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, a.timeout)
}

// latest prints which backup "latest" means, and what was passed over.
func (a *app) latest(notes []string) {
	for _, n := range notes {
		a.note("latest: %s", n)
	}
}

// ctl is the command line of this tool on this store, for the operator to copy.
func (a *app) ctl(args ...string) string {
	return "etcd-manager-ctl --backup-store=" + a.store + " " + strings.Join(args, " ")
}

// confirm asks the operator, unless yes says that it isn't needed.
func (a *app) confirm(ctx context.Context, yes bool, word, what string) error {
	return ui.Asker{In: a.in, Out: a.errOut, Person: a.person}.Confirm(ctx, yes, word, what)
}

// note tells the operator something beside the result.
func (a *app) note(format string, args ...any) { fmt.Fprintf(a.errOut, format+"\n", args...) }

// format checks --output against what the command can do.
func (a *app) format(allowed ...string) error {
	if a.output == "" || slices.Contains(allowed, a.output) {
		return nil
	}
	return ui.Usagef("--output=%s is not possible here: use %s", a.output, strings.Join(allowed, " or "))
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func (a *app) printf(format string, args ...any) error {
	if _, err := fmt.Fprintf(a.out, format, args...); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// exactlyOne is cobra.ExactArgs(1) with an error that says what is missing.
func exactlyOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return ui.Usagef("%s needs %s", cmd.Name(), what)
		case len(args) > 1:
			return ui.Usagef("%s takes one argument, not %d", cmd.Name(), len(args))
		}
		return nil
	}
}

// atMostOne is cobra.MaximumNArgs(1) in the same words.
func atMostOne(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return ui.Usagef("%s takes one argument, not %d", cmd.Name(), len(args))
	}
	return nil
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return ui.Usagef("%s takes no argument, but got %q", cmd.Name(), args[0])
	}
	return nil
}
