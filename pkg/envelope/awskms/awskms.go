// Package awskms lets an envelope be opened by keys of AWS KMS, or of a server that speaks its protocol.
//
// It asks for data keys and unwraps them, each bound to the object that it is for, and turns what the service answers into the
// sentinels of pkg/envelope: a key that is refused is never taken for a damaged object, nor is a service that doesn't answer.
// It keeps no key: every object has its own.
package awskms

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/etcd-manager/etcd-manager/pkg/envelope"
)

const (
	actionGenerate = "kms:GenerateDataKey"
	actionDecrypt  = "kms:Decrypt"
	// callTimeout bounds one call with all its attempts.
	callTimeout = 30 * time.Second
	// attempts are made of a call that the service throttles or doesn't answer.
	attempts = 5
)

// Config says how to reach the service. The zero value is AWS itself.
type Config struct {
	// Endpoint is the URL of a server other than AWS; empty for AWS or what the SDK's own variables name.
	Endpoint string
	// Timeout bounds one call with all its attempts (default 30 s).
	Timeout time.Duration
}

// KMS is the service as an envelope.KMS. Make one with New. It has no goroutines; idle connections end by themselves.
type KMS struct {
	c Config
	// mu guards what follows. The configuration of the SDK is loaded when the first key is needed:
	// who needs none needs no credentials either.
	mu      sync.Mutex
	base    *aws.Config
	regions map[string]calls
}

// New returns the service. Nothing is read or sent before the first key is needed. Credentials are
// looked for where the AWS SDK always does.
func New(c Config) *KMS {
	if c.Timeout <= 0 {
		c.Timeout = callTimeout
	}
	return &KMS{c: c, regions: make(map[string]calls)}
}

// calls are those of the service that are used. They are held one by one, so that the linker can drop all the others.
type calls struct {
	GenerateDataKey func(context.Context, *kms.GenerateDataKeyInput, ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error)
	Decrypt         func(context.Context, *kms.DecryptInput, ...func(*kms.Options)) (*kms.DecryptOutput, error)
}

// client returns the calls for the region of a key.
func (k *KMS) client(ctx context.Context, keyID string) (calls, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.base == nil {
		client := awshttp.NewBuildableClient().WithDialerOptions(func(d *net.Dialer) {
			d.Timeout, d.KeepAlive = 10*time.Second, 15*time.Second
		}).WithTransportOptions(func(t *http.Transport) {
			t.TLSHandshakeTimeout, t.ResponseHeaderTimeout, t.IdleConnTimeout = 10*time.Second, 15*time.Second, 30*time.Second
		})
		base, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithHTTPClient(client), awsconfig.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = attempts, 2*time.Second })
		}))
		if err != nil {
			return calls{}, fmt.Errorf("load AWS configuration: %w", err)
		}
		k.base = &base
	}
	region := regionOf(keyID)
	c, known := k.regions[region]
	if !known {
		client := kms.NewFromConfig(*k.base, func(o *kms.Options) {
			o.Region = region
			if k.c.Endpoint != "" {
				o.BaseEndpoint = aws.String(k.c.Endpoint)
			}
		})
		c = calls{GenerateDataKey: client.GenerateDataKey, Decrypt: client.Decrypt}
		k.regions[region] = c
	}
	return c, nil
}

// regionOf is the region in the ARN of a key.
func regionOf(arn string) string {
	if p := strings.SplitN(arn, ":", 6); len(p) == 6 && p[3] != "" {
		return p[3]
	}
	return "us-east-1"
}

// GenerateDataKey implements envelope.KMS.
func (k *KMS) GenerateDataKey(ctx context.Context, keyID string, bound map[string]string) (envelope.DataKey, error) {
	c, err := k.client(ctx, keyID)
	if err != nil {
		return envelope.DataKey{}, err
	}
	short, cancel := context.WithTimeout(ctx, k.c.Timeout)
	defer cancel()
	out, err := c.GenerateDataKey(short, &kms.GenerateDataKeyInput{KeyId: &keyID, KeySpec: types.DataKeySpecAes256,
		EncryptionContext: bound})
	if err != nil {
		return envelope.DataKey{}, explain(ctx, err, actionGenerate, keyID)
	}
	if len(out.Plaintext) == 0 || len(out.CiphertextBlob) == 0 {
		return envelope.DataKey{}, errors.New("the key service gave no data key")
	}
	key := envelope.DataKey{KeyID: keyID, Plain: out.Plaintext, Wrapped: out.CiphertextBlob}
	if id := aws.ToString(out.KeyId); strings.HasPrefix(id, "arn:") {
		key.KeyID = id
	}
	return key, nil
}

// Decrypt implements envelope.KMS.
func (k *KMS) Decrypt(ctx context.Context, keyID string, wrapped []byte, bound map[string]string) ([]byte, error) {
	c, err := k.client(ctx, keyID)
	if err != nil {
		return nil, err
	}
	short, cancel := context.WithTimeout(ctx, k.c.Timeout)
	defer cancel()
	out, err := c.Decrypt(short, &kms.DecryptInput{KeyId: &keyID, CiphertextBlob: wrapped, EncryptionContext: bound})
	if err != nil {
		return nil, explain(ctx, err, actionDecrypt, keyID)
	}
	return out.Plaintext, nil
}

var _ envelope.KMS = (*KMS)(nil)
