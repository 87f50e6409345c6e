#!/bin/sh
# Makes the folder secrets/ for docker-compose.yml: one file a secret, each with one line.
#
#   sh deploy/make-secrets.sh
#
# It may run again at any time: a file with something in it is never changed. What an .env of an
# older version says is taken over.
set -eu
cd "$(dirname "$0")/.."

# Only the folder's owner may enter it. The files themselves are open to everybody who can reach
# them: Docker shows each to its container as it is, and the user in there is another one.
umask 022
[ -d secrets ] || mkdir secrets
chmod 700 secrets

random() {
    od -An -tx1 -N32 /dev/urandom | tr -d ' \n'
}

# What .env says of a variable: nothing, or its value. Fails where only Compose itself can tell.
in_env() {
    [ -f .env ] || return 0
    line=$(sed -n "s/^[[:space:]]*\(export[[:space:]]\{1,\}\)\{0,1\}$1[[:space:]]*=[[:space:]]*//p" .env |
        tail -n 1 | tr -d '\r' | sed 's/[[:space:]]*$//')
    case $line in
        "'"*"'")
            value=${line#?}
            value=${value%?}
            case $value in *\'*) return 1 ;; esac
            ;;
        *)
            value=$(printf '%s' "$line" | sed 's/[[:space:]]\{1,\}#.*//; s/^"\([^"]*\)"$/\1/')
            case $value in *[\'\"\$]* | *\\*) return 1 ;; esac
            ;;
    esac
    printf '%s' "$value"
}

left=""
# secret NAME VARIABLE [VALUE]: make the file NAME from VARIABLE in .env, else with VALUE, else empty.
secret() {
    file=secrets/$1
    if [ -d "$file" ]; then
        echo "$file is a folder, made by Docker while the file was missing. Remove it: rmdir $file" >&2
        exit 1
    fi
    said=
    if [ -n "$2" ] && ! said=$(in_env "$2"); then
        if [ ! -s "$file" ]; then
            echo "Can't read $2 in .env: it has quotes, backslashes or dollar signs. Write its value" >&2
            echo "into $file as it is, take it out of .env, and run this again." >&2
            exit 1
        fi
        said=odd
    fi
    if [ -n "$said" ]; then
        left="$left $2"
    fi
    if [ -s "$file" ]; then
        echo "kept     $file"
    elif [ -n "$said" ]; then
        printf '%s\n' "$said" > "$file"
        echo "from .env: $file"
    elif [ -n "${3-}" ]; then
        printf '%s\n' "$3" > "$file"
        echo "made     $file"
    else
        : > "$file"
        echo "empty    $file"
    fi
    chmod 644 "$file"
}

secret database_password POSTGRES_PASSWORD "$(random)"
secret redis_password REDIS_PASSWORD "$(random)"
secret secret_key SECRET_KEY "$(random)"
secret flower_basic_auth FLOWER_BASIC_AUTH "flower:$(random)"
secret first_admin_password "" "$(random)"
# Empty ones count as not set; fill in those that you need.
secret previous_secret_key PREVIOUS_SECRET_KEY
secret celery_broker_url CELERY_BROKER_URL
secret openai_api_key OPENAI_API_KEY
secret anthropic_api_key ANTHROPIC_API_KEY
secret gemini_api_key GEMINI_API_KEY
secret smtp_url SMTP_URL
secret object_storage_access_key OBJECT_STORAGE_ACCESS_KEY
secret object_storage_secret_key OBJECT_STORAGE_SECRET_KEY

echo
if [ -n "$left" ]; then
    echo "docker compose ignores these lines of .env from now on; take them out:$left"
fi
echo "Write the keys of your providers into secrets/*_api_key, one line each."
echo "Flower asks for the user and the password in secrets/flower_basic_auth."
echo "With FIRST_ADMIN_EMAIL in .env, that person signs in with secrets/first_admin_password."
echo "Then: docker compose up -d --build"
