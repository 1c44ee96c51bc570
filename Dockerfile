# The first stage installs the locked requirements; the image itself holds no build tools and no pip.
FROM python:3.13-slim-trixie AS build
COPY requirements.lock /build/
RUN python -m venv --without-pip /venv \
 && python -m pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check \
      --only-binary :all: --require-hashes -r /build/requirements.lock \
 && echo /app/src > "$(/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/store-credit.pth" \
 && printf '#!/bin/sh\nexec /venv/bin/python -m store_credit "$@"\n' > /venv/bin/store-credit \
 && chmod +x /venv/bin/store-credit

FROM python:3.13-slim-trixie
RUN rm -rf /usr/local/lib/python3.13/site-packages/pip* /usr/local/lib/python3.13/ensurepip /usr/local/bin/pip* \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin store-credit
COPY --from=build /venv /venv
COPY alembic.ini /app/
COPY migrations /app/migrations
COPY src /app/src
RUN python -m compileall -q /app/src /app/migrations
ENV PATH="/venv/bin:$PATH" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001
EXPOSE 8000
# That it lives, and not that its database answers: to replace it brings no database back.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["store-credit"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
