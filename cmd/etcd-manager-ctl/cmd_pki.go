package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

const (
	defaultPKIDir = "/etc/kubernetes/pki/etcd-manager"
	caDuration    = 10 * 365 * 24 * time.Hour
	minCADuration = 24 * time.Hour
)

// pkiTool is what the commands about certificates share.
type pkiTool struct {
	*app
	dir string
}

func pkiCommand(a *app) *cobra.Command {
	p := &pkiTool{app: a}
	cmd := &cobra.Command{
		Use: "pki", Short: "Make and check the CAs, and issue certificates for etcd's clients",
		Long: `Make the three CAs that the managers need, check them, and issue client certificates for etcdctl and API servers.
These commands only read and write files: they need no store. They never overwrite a private key.`,
		Example: `  etcd-manager-ctl pki init
  etcd-manager-ctl pki check
  etcd-manager-ctl pki client kube-apiserver --out=/etc/kubernetes/pki/etcd-client`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return ui.Usagef("pki needs init, check or client")
			}
			return ui.Usagef("unknown command %q for pki: use init, check or client", args[0])
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	cmd.PersistentFlags().StringVar(&p.dir, "pki-dir", defaultPKIDir, "`directory` with the CAs, as etcd-manager has it")
	cmd.AddCommand(p.initCommand(), p.checkCommand(), p.clientCommand())
	return cmd
}

func (p *pkiTool) initCommand() *cobra.Command {
	life := caDuration
	cmd := &cobra.Command{
		Use: "init", Short: "Make the CAs that are missing", Args: noArgs,
		Long: `Make the three CAs: etcd-manager-ca for the managers, etcd-peers-ca for etcd's members, etcd-clients-ca for etcd and its
clients. Each is a certificate (.crt) and a private key (.key, readable by its owner only). Run it once for a cluster, on one
machine, and copy the directory to every master. What exists is kept. Nothing is made if something that exists doesn't fit.`,
		Example: `  etcd-manager-ctl pki init --pki-dir=/etc/kubernetes/pki/etcd-manager`,
		RunE: func(*cobra.Command, []string) error {
			if err := p.format("json"); err != nil {
				return err
			}
			if life < minCADuration {
				return ui.Usagef("--duration=%s is too short for a CA: give at least 1d, for example 10y", life)
			}
			made, err := pki.Init(p.dir, life, p.now())
			if err != nil {
				return err
			}
			return p.sayMade(made)
		},
	}
	cmd.Flags().Var(retention.Flag{To: &life}, "duration", "for how long the CAs are valid, for example 10y")
	return cmd
}

func (p *pkiTool) sayMade(made []pki.Made) error {
	if p.output == "json" {
		return p.printJSON(made)
	}
	isNew := false
	for _, m := range made {
		isNew = isNew || m.State != pki.CAKept
		what := map[string]string{
			pki.CAMade: "made", pki.CACompleted: "made a certificate for the key that was there", pki.CAKept: "existed, and was kept",
		}[m.State]
		if err := p.printf("%-17s %s: %s\n", m.Name, what, m.Cert); err != nil {
			return err
		}
	}
	if !isNew {
		return p.printf("All CAs existed; nothing was changed. Check them: etcd-manager-ctl pki check --pki-dir=%s\n", ui.ShellWord(p.dir))
	}
	return p.printf(`Copy %s to every master, with its permissions. Don't run this command there: all masters need the same CAs.
Keep a copy of the keys in a safe place. Whoever has them can read and change the whole cluster.
`, p.dir)
}

func (p *pkiTool) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check [CERTIFICATE.crt …]", Short: "Check the CAs: what ends when, what fits what, who can read the keys",
		Long: `Check the CAs in --pki-dir: whether each key fits its certificate, whether files are mixed up, what ends when, and who can read the
keys. Certificates that are named are checked against the CAs: which of them has signed it, and whether the key beside it fits.
All that is wrong is printed at once. Nothing is changed. The exit code is 0 if nothing serious is wrong, and 1 otherwise.`,
		Example: `  etcd-manager-ctl pki check
  etcd-manager-ctl pki check --pki-dir=/etc/kubernetes/pki/etcd-manager /etc/kubernetes/pki/apiserver-etcd-client.crt`,
		RunE: func(_ *cobra.Command, args []string) error {
			if err := p.format("json"); err != nil {
				return err
			}
			i := pki.Inspect(p.dir, pki.CANames(), p.now())
			for _, path := range args {
				i.AddFile(path)
			}
			return p.sayInspection(i)
		},
	}
}

// sayInspection prints what was found. Something serious is an error.
func (p *pkiTool) sayInspection(i *pki.Inspection) error {
	if p.output == "json" {
		if err := p.printJSON(i); err != nil {
			return err
		}
	} else if err := p.printCAs(i); err != nil {
		return err
	}
	serious := 0
	for _, found := range i.Problems {
		if found.Serious {
			serious++
		}
	}
	if serious > 0 {
		return &outcomeError{exitFailure, fmt.Sprintf("%s found in the certificates", ui.Count(serious, "problem"))}
	}
	return nil
}

func (p *pkiTool) printCAs(i *pki.Inspection) error {
	for _, c := range i.Certificates {
		var facts []string
		switch {
		case c.CA && c.Signs:
			facts = append(facts, "signs")
		case c.CA:
			facts = append(facts, "is trusted, but doesn't sign")
		case c.SignedBy != "":
			facts = append(facts, "signed by "+c.SignedBy)
		}
		if len(c.Usages) > 0 {
			facts = append(facts, "for "+strings.Join(c.Usages, " and "))
		}
		if c.Key != "" && !c.CA {
			facts = append(facts, "fits "+c.Key)
		}
		facts = append(facts, "ends "+c.NotAfter.Format(time.DateOnly), "SHA-256 "+c.SHA256[:16])
		if err := p.printf("%s: %q %s\n", c.Path, c.Name, strings.Join(facts, ", ")); err != nil {
			return err
		}
	}
	for _, serious := range []bool{true, false} {
		for _, found := range i.Problems {
			if found.Serious != serious {
				continue
			}
			word := map[bool]string{true: "problem", false: "warning"}[serious]
			if err := p.printf("%s: %s: %s\n  do: %s\n", word, found.Path, found.Text, found.Do); err != nil {
				return err
			}
		}
	}
	if len(i.Problems) == 0 {
		return p.printf("Nothing is wrong. The SHA-256 of each CA must be the same on all masters.\n")
	}
	return nil
}

func (p *pkiTool) clientCommand() *cobra.Command {
	r := pki.ClientRequest{Duration: pki.DefaultPolicy().Duration}
	cmd := &cobra.Command{
		Use: "client NAME", Short: "Issue a client certificate for etcdctl or an API server",
		Long: `Issue a client certificate, signed by etcd-clients-ca, and write NAME.crt, NAME.key and ca.crt to --out. The name is the common name:
an etcd with users takes it for the user. A key that exists is never overwritten; --renew issues a new certificate for it.`,
		Example: `  etcd-manager-ctl pki client kube-apiserver --out=/etc/kubernetes/pki/etcd-client
  etcd-manager-ctl pki client kube-apiserver --out=/etc/kubernetes/pki/etcd-client --renew`,
		Args: exactlyOne("a name for the certificate, for example kube-apiserver"),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := p.format("json"); err != nil {
				return err
			}
			r.Name = args[0]
			if err := r.Check(); err != nil {
				return &ui.UsageError{Err: err}
			}
			files, err := r.Issue(p.dir, p.now())
			if err != nil {
				return err
			}
			if p.output == "json" {
				return p.printJSON(files)
			}
			return p.sayClient(files)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.Dir, "out", ".", "`directory` for the files")
	f.Var(retention.Flag{To: &r.Duration}, "duration", "for how long the certificate is valid; it never ends after its CA")
	f.BoolVar(&r.Renew, "renew", false, "issue a new certificate for the key that exists")
	return cmd
}

func (p *pkiTool) sayClient(f pki.ClientFiles) error {
	ca, cert, key := ui.ShellWord(f.CA), ui.ShellWord(f.Cert), ui.ShellWord(f.Key)
	return p.printf(`client certificate of %q, ends %s
  etcdctl:         --cacert=%s --cert=%s --key=%s
  kube-apiserver:  --etcd-cafile=%s --etcd-certfile=%s --etcd-keyfile=%s
`, f.Name, f.NotAfter.UTC().Format(time.DateOnly), ca, cert, key, ca, cert, key)
}
