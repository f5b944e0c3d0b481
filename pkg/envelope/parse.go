package envelope

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"filippo.io/age"
)

// Prefixes of what is given on a command line.
const (
	agePrefix = "age:"
	kmsPrefix = "aws-kms:"
	// secretPrefix begins the lines of a file with identities.
	secretPrefix = "AGE-SECRET-KEY-"
)

// Config is what recipients and identities need beside their names.
type Config struct {
	// Cluster is the name of the etcd cluster. Keys of a key service are bound to it, so that the
	// key's policy can tell clusters apart. An Opener doesn't need it: it takes it from what it
	// opens.
	Cluster string
	// KMS is the key service; nil if there is none.
	KMS KMS
}

// NewSealer returns a Sealer for all the recipients, each of which opens what it seals: "age:FILE"
// names a file of age recipients, one a line, "age:age1…" is one recipient, "aws-kms:ARN" a key of
// AWS KMS or an alias of one. Several in one string are separated by commas. It reads the files and
// asks nobody: whether the keys can be used is for Probe to find out. Without recipients the Sealer
// is nil.
func NewSealer(c Config, recipients []string) (Sealer, error) {
	s := &sealer{cluster: c.Cluster, kms: c.KMS}
	if strings.ContainsAny(c.Cluster, "\r\n") {
		return nil, fmt.Errorf("encrypt for cluster %q: that is no name of a cluster", c.Cluster)
	}
	hybrid := 0
	for _, spec := range split(recipients) {
		if arn, ok := strings.CutPrefix(spec, kmsPrefix); ok {
			if err := checkARN(arn, true); err != nil {
				return nil, fmt.Errorf("encrypt for %s: %w", spec, err)
			}
			if c.KMS == nil {
				return nil, fmt.Errorf("encrypt for %s: there is no key service here", spec)
			}
			s.kmsKeys = append(s.kmsKeys, arn)
			continue
		}
		list, err := ageRecipients(spec)
		if err != nil {
			return nil, fmt.Errorf("encrypt for %s: %w", spec, err)
		}
		for _, r := range list {
			if _, ok := r.(*age.HybridRecipient); ok {
				hybrid++
			}
			s.recipients = append(s.recipients, r)
			s.keyIDs = append(s.keyIDs, shortID(fmt.Sprint(r)))
		}
	}
	s.keyIDs = append(s.keyIDs, s.kmsKeys...)
	switch {
	case len(s.keyIDs) == 0:
		return nil, nil
	case len(s.keyIDs) > maxKeys:
		return nil, fmt.Errorf("encrypt for %d recipients: at most %d are possible", len(s.keyIDs), maxKeys)
	case hybrid > 0 && hybrid < len(s.recipients):
		return nil, errors.New("encrypt for recipients of age: post-quantum recipients (age1pq1…) and others can't be combined, because the others would void the protection; give only one kind")
	case hybrid > 0:
		s.labels = []string{"postquantum"}
	}
	return s, nil
}

// maxKeys is how many keys the head has room for.
const maxKeys = 100

// split takes lists apart and drops what is empty and what was named before.
func split(specs []string) []string {
	var out []string
	for _, list := range specs {
		for _, s := range strings.Split(list, ",") {
			if s = strings.TrimSpace(s); s != "" && !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	return out
}

func ageRecipients(spec string) ([]age.Recipient, error) {
	rest, ok := strings.CutPrefix(spec, agePrefix)
	if !ok {
		return nil, errors.New("it must be age:FILE, age:RECIPIENT or aws-kms:ARN")
	}
	if strings.HasPrefix(rest, "age1") && !strings.ContainsAny(rest, "/.") {
		return age.ParseRecipients(strings.NewReader(rest))
	}
	data, err := os.ReadFile(rest)
	if err != nil {
		return nil, fmt.Errorf("read recipients: %w", err)
	}
	if bytes.Contains(data, []byte(secretPrefix)) {
		return nil, fmt.Errorf("%s holds secret keys; it must hold the recipients that belong to them (age-keygen -y prints them), and secret keys should not be where only encrypting is done", rest)
	}
	list, err := age.ParseRecipients(bytes.NewReader(trimLines(data)))
	if err != nil {
		return nil, fmt.Errorf("read recipients of %s: %w", rest, err)
	}
	return list, nil
}

// trimLines drops spaces around lines, as editors and secrets that are mounted leave them.
func trimLines(data []byte) []byte {
	var b bytes.Buffer
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		b.Write(bytes.TrimSpace(s.Bytes()))
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// NewOpener returns an Opener with these identities: "FILE" or "age:FILE" names a file with age's
// secret keys (AGE-SECRET-KEY-…), one a line, and "aws-kms:ARN" a key of the key service. If no key
// of the service is named, all that an object names are tried, else only these.
func NewOpener(c Config, identities []string) (Opener, error) {
	o := &opener{kms: c.KMS}
	for _, spec := range split(identities) {
		if arn, ok := strings.CutPrefix(spec, kmsPrefix); ok {
			if err := checkARN(arn, false); err != nil {
				return nil, fmt.Errorf("read keys %s: %w", spec, err)
			}
			if c.KMS == nil {
				return nil, fmt.Errorf("read keys %s: there is no key service here", spec)
			}
			o.kmsKeys = append(o.kmsKeys, arn)
			continue
		}
		path := strings.TrimPrefix(spec, agePrefix)
		if strings.HasPrefix(path, secretPrefix) {
			return nil, errors.New("read keys: a secret key is on the command line, where everybody can see it; write it to a file and name the file")
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read keys: %w", err)
		}
		list, err := age.ParseIdentities(bytes.NewReader(trimLines(data)))
		if err != nil {
			return nil, fmt.Errorf("read keys of %s: %w; it must hold lines that begin with %s1, as age-keygen writes them",
				path, err, secretPrefix)
		}
		for _, id := range list {
			o.identities = append(o.identities, id)
			o.own = append(o.own, shortID(recipientOf(id)))
		}
	}
	return o, nil
}

// recipientOf is the public key of an identity.
func recipientOf(id age.Identity) string {
	switch i := id.(type) {
	case *age.X25519Identity:
		return i.Recipient().String()
	case *age.HybridIdentity:
		return i.Recipient().String()
	}
	return ""
}

// checkARN refuses what can't name a key: arn:PARTITION:kms:REGION:ACCOUNT:key/ID.
func checkARN(arn string, alias bool) error {
	p := strings.SplitN(arn, ":", 6)
	if len(p) == 6 && p[0] == "arn" && p[1] != "" && p[2] == "kms" && p[3] != "" && p[4] != "" && !strings.ContainsAny(arn, " \t\r\n") {
		if kind, id, _ := strings.Cut(p[5], "/"); id != "" && (kind == "key" || kind == "alias" && alias) {
			return nil
		}
	}
	if !alias {
		return fmt.Errorf("%q is not the ARN of a key, as arn:aws:kms:REGION:ACCOUNT:key/ID", arn)
	}
	return fmt.Errorf("%q is not the ARN of a key or an alias, as arn:aws:kms:REGION:ACCOUNT:key/ID", arn)
}
