#!/usr/bin/env bash
# Makes a CA of your own and one certificate for each service, as the production configuration wants them.
#     deploy/certs.sh [FOLDER [PUBLIC_NAME...]]      (deploy/certs, localhost)
# What is there stays: run it again for a service that is new. Needs openssl.
# Better CAs (cert-manager, SPIRE, Vault) do as well: a certificate needs the name spiffe://tollgate/svc/SERVICE,
# both extended key usages, and nothing else.
set -euo pipefail

folder=${1:-$(dirname "$0")/certs}
shift || true
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(localhost)

# The folder itself is closed to other users of this machine. The folders inside are what containers
# mount, and their user must be able to read them.
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"

if [ ! -e ca.key ]; then
    (umask 077 && openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out ca.key)
    openssl req -x509 -new -key ca.key -sha256 -days 3650 -subj "/CN=Tollgate CA" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -out ca.pem
    echo "made $folder/ca.pem; keep ca.key away from the machines that run services"
fi

leaf() { # FOLDER COMMON-NAME SAN USAGE
    [ -e "$1/cert.pem" ] && return
    mkdir -p "$1"
    chmod 755 "$1"
    openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1/key.pem"
    openssl req -new -key "$1/key.pem" -subj "/CN=$2" |
        openssl x509 -req -CA ca.pem -CAkey ca.key -set_serial "0x$(openssl rand -hex 16)" -sha256 -days 365 \
            -extfile <(
                echo "basicConstraints=CA:FALSE"
                echo "keyUsage=critical,digitalSignature"
                echo "extendedKeyUsage=$4"
                echo "subjectAltName=$3"
                echo "subjectKeyIdentifier=hash"
                echo "authorityKeyIdentifier=keyid"
            ) -out "$1/cert.pem" 2> /dev/null
    cp ca.pem "$1/ca.pem"
    chmod 644 "$1"/*.pem
    echo "made $folder/$1"
}

for service in auth-service project-service gateway-service edge-proxy; do
    leaf "$service" "$service" "URI:spiffe://tollgate/svc/$service" "serverAuth,clientAuth"
done

san=
for name in "${names[@]}"; do
    if [[ $name =~ ^[0-9.]+$|: ]]; then san+="${san:+,}IP:$name"; else san+="${san:+,}DNS:$name"; fi
done
leaf public "${names[0]}" "$san" "serverAuth"
